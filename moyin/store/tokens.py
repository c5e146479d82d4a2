"""Makes secrets, ids, and the digests by which secrets are stored."""

from __future__ import annotations

import hashlib
import secrets

__all__ = ["digest", "new_id", "new_secret"]


def digest(text: str) -> str:
    """Return the SHA-256 in hex. Only passwords need a slow hash, not 256 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_secret(kind: str) -> str:
    """Return 256 random bits as ``moyin<kind>_…``, which secret scanners can recognise."""
    return f"moyin{kind}_{secrets.token_urlsafe(32)}"


def new_id(kind: str) -> str:
    """Return a random id: ``<kind>_<24 hex digits>``."""
    return f"{kind}_{secrets.token_hex(12)}"
