"""Devices that an account was used on before: their attempts to sign in count by themselves."""

from __future__ import annotations

import secrets
import time

import jwt

__all__ = ["Devices"]

_ALGORITHM = "HS256"
_AUDIENCE = "moyin-device"
_LIFETIME_SECONDS = 180 * 86_400


class Devices:
    """Issues and reads device tokens. A token opens nothing: it only proves that the one who presents
    it has signed in to the account before, so that what others try there does not count against them.
    """

    def __init__(self, signing_key: bytes) -> None:
        self._signing_key = signing_key

    def issue(self, user_id: str) -> str:
        """Return a token for the device on which ``user_id`` has proven who they are."""
        claims = {
            "aud": _AUDIENCE,
            "sub": user_id,
            "jti": secrets.token_hex(12),
            "exp": int(time.time()) + _LIFETIME_SECONDS,
        }
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM)

    def name_of(self, token: str | None, user_id: str) -> str | None:
        """Return the device's name if ``token`` was issued for ``user_id``; None: it proves nothing."""
        if not token:
            return None
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "sub", "jti", "aud"]},
            )
        except jwt.InvalidTokenError:
            return None
        return str(claims["jti"]) if claims["sub"] == user_id else None
