"""Secrets that are kept as digests only."""

from __future__ import annotations

import hashlib
import secrets

__all__ = ["digest", "new_id", "new_secret"]


def digest(text: str) -> str:
    """SHA-256 in hex. Enough for 256 random bits; slow hashes are for what people choose."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_secret(kind: str) -> str:
    """256 random bits as text, recognisable by scanners: ``moyin<kind>_…``."""
    return f"moyin{kind}_{secrets.token_urlsafe(32)}"


def new_id(kind: str) -> str:
    """``<kind>_<24 hex digits>``."""
    return f"{kind}_{secrets.token_hex(12)}"
