"""Generates secrets and ids, and computes the digests that are stored instead of secrets."""

from __future__ import annotations

import hashlib
import secrets


def compute_digest(secret: str) -> str:
    """Return the SHA-256 of a secret in hex; random secrets need no slow hash, unlike passwords."""
    return hashlib.sha256(secret.encode()).hexdigest()


def generate_secret(kind: str) -> str:
    """Return a secret ``moyin<kind>_…`` of 256 random bits; secret scanners recognise the prefix."""
    return f"moyin{kind}_{secrets.token_urlsafe(32)}"


def generate_id(kind: str) -> str:
    """Return a random id ``<kind>_<24 hex digits>``."""
    return f"{kind}_{secrets.token_hex(12)}"
