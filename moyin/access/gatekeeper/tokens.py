"""Access tokens of people who signed in: EdDSA, proven by the public key alone, without a hop."""

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
# Tokens that name unknown keys are free to make: they must not cost a query each.
_UNKNOWN_SECONDS = 1.0


class TokenVerifier:
    """Holds the public keys; reads them again every minute, and when one is unknown."""

    def __init__(self, keys: SigningKeyStore) -> None:
        self._store = keys
        self._keys: dict[str, PublicKey] = {}
        self._read_at = float("-inf")

    async def claims(self, token: str) -> Mapping[str, Any]:
        """What a token says, once it is proven.

        Raises:
            InvalidKey: it is not ours, altered or expired.
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
                # When it was made says nothing, and whoever made it may have a clock a little ahead.
                options={"require": _REQUIRED, "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidKey("the token has expired; refresh it") from None
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        return claims

    async def is_by_us(self, token: str) -> bool:
        """Whether the key that signed an earlier proven token is still one of ours."""
        return await self._key(str(jwt.get_unverified_header(token).get("kid"))) is not None

    async def _key(self, kid: str) -> PublicKey | None:
        age = time.monotonic() - self._read_at
        if age > (_KEYS_SECONDS if kid in self._keys else _UNKNOWN_SECONDS):
            self._keys = {key.kid: key for key in await self._store.public()}
            self._read_at = time.monotonic()
        return self._keys.get(kid)
