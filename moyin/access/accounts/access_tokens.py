"""Issues short-lived EdDSA access tokens, which replicas verify with the public key alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import jwt

from moyin.access.gatekeeper.tokens import ALGORITHM, AUDIENCE, ISSUER, TYPE
from moyin.domain.account import Session, User
from moyin.store.signing_keys import SigningKey, SigningKeyStore

# After a rotation, a replica may sign with the previous key for this time.
_KEY_CACHE_SECONDS = 60.0


class AccessTokenIssuer:
    """Issues access tokens, signed with the newest key pair in the database.

    Attributes:
        lifetime: the time after which an issued token expires.
    """

    def __init__(self, keys: SigningKeyStore, lifetime: timedelta) -> None:
        self._keys = keys
        self._key: SigningKey | None = None
        self._key_read_at = float("-inf")
        self.lifetime = lifetime

    async def issue(self, user: User, session: Session, scopes: Iterable[str]) -> str:
        """Return an access token of ``user`` with ``scopes``.

        It expires after `lifetime`, or when ``session`` ends if that is earlier.
        """
        key = await self._get_signing_key()
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user.id,
            "sid": session.id,
            "own": user.owner,
            "scope": " ".join(sorted(scopes)),
            "iat": now,
            "exp": now + int(self.lifetime.total_seconds()),
        }
        headers = {"kid": key.kid, "typ": TYPE}
        return jwt.encode(claims, key.key, algorithm=ALGORITHM, headers=headers)

    async def get_jwks(self) -> Mapping[str, Any]:
        """Return the public keys as a JWK Set (RFC 7517 and, for Ed25519, RFC 8037)."""
        return {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "alg": ALGORITHM,
                    "use": "sig",
                    "kid": key.kid,
                    "x": key.x,
                }
                for key in await self._keys.list_public_keys()
            ]
        }

    async def _get_signing_key(self) -> SigningKey:
        if self._key is None or time.monotonic() - self._key_read_at > _KEY_CACHE_SECONDS:
            self._key = await self._keys.get_newest()
            self._key_read_at = time.monotonic()
        return self._key
