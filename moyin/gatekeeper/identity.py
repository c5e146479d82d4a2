"""Proof of identity: API keys, and tokens that services inside sign for each other."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Protocol

import jwt

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey
from moyin.store.keys import KeyStore

__all__ = ["Authenticator", "KeyAuthenticator", "mint_token"]

_ALGORITHM = "HS256"
_AUDIENCE = "moyin-internal"
# Revoking a key takes effect within this time, everywhere.
_CACHE_SECONDS = 5.0
_CACHE_SIZE = 10_000


class Authenticator(Protocol):
    """Turns what the client presented into an identity."""

    async def authenticate(self, presented: str) -> Identity:
        """Raises InvalidKey when it proves nothing."""
        ...


class KeyAuthenticator:
    """API keys from the key store, cached for seconds, and internal tokens, which need no store.

    The cache is keyed by the whole secret and bounded; it holds successes only, so guessing
    neither fills it nor is spared the look-up.
    """

    def __init__(self, keys: KeyStore, signing_key: bytes) -> None:
        self._keys = keys
        self._signing_key = signing_key
        self._cache: OrderedDict[str, tuple[float, Identity]] = OrderedDict()

    async def authenticate(self, presented: str) -> Identity:
        cached = self._cache.get(presented)
        if cached is not None and cached[0] > time.monotonic():
            return cached[1]
        if presented.count(".") == 2:
            return self._from_token(presented)
        identity = await self._keys.verify(presented)
        self._cache[presented] = (time.monotonic() + _CACHE_SECONDS, identity)
        self._cache.move_to_end(presented)
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return identity

    def _from_token(self, token: str) -> Identity:
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
        except jwt.InvalidTokenError:
            raise InvalidKey("the token is not valid") from None
        return Identity(owner=claims["sub"], key_id=f"internal:{claims['iss']}")


def mint_token(signing_key: bytes, owner: str, issuer: str, ttl_s: float = 300) -> str:
    """A token with which the service ``issuer`` acts for ``owner``, for ``ttl_s`` seconds."""
    claims = {"sub": owner, "iss": issuer, "aud": _AUDIENCE, "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims, signing_key, algorithm=_ALGORITHM)
