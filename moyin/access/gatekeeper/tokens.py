"""Verifies the access tokens of signed-in users by public keys, without a network call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jwt

from moyin.errors import InvalidKey
from moyin.store.signing_keys import PublicKey, SigningKeyStore

__all__ = ["ALGORITHM", "AUDIENCE", "ISSUER", "TYPE", "TokenVerifier"]

ALGORITHM = "EdDSA"
ISSUER = AUDIENCE = "moyin"
TYPE = "at+jwt"
_REQUIRED = ["exp", "iat", "iss", "aud", "sub", "sid", "own", "scope"]
_KEYS_SECONDS = 60.0
# Anybody can make tokens that name unknown keys, so they must not cost a query each.
_UNKNOWN_SECONDS = 1.0


class TokenVerifier:
    """Caches the public keys; reads them again every minute, and for an unknown key."""

    def __init__(self, keys: SigningKeyStore) -> None:
        self._store = keys
        self._keys: dict[str, PublicKey] = {}
        self._read_at = float("-inf")

    async def claims(self, token: str) -> Mapping[str, Any]:
        """Verify a token and return its claims.

        Raises:
            InvalidKey: the token has an unknown key, is altered or has expired.
        """
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        key = await self._key(str(header.get("kid")))
        if key is None or header.get("typ") != TYPE:
            raise InvalidKey("the token is not valid")
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # The issuing replica's clock may be slightly ahead, so `iat` is not checked.
                options={"require": _REQUIRED, "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidKey("the token has expired; refresh it") from None
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        return claims

    async def has_known_key(self, token: str) -> bool:
        """Return whether the key of a token that was verified before still exists."""
        return await self._key(str(jwt.get_unverified_header(token).get("kid"))) is not None

    async def _key(self, kid: str) -> PublicKey | None:
        age = time.monotonic() - self._read_at
        if age > (_KEYS_SECONDS if kid in self._keys else _UNKNOWN_SECONDS):
            self._keys = {key.kid: key for key in await self._store.list_public_keys()}
            self._read_at = time.monotonic()
        return self._keys.get(kid)
