"""Signs the headers that identify the caller to an upstream service."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping

import jwt

from moyin.domain.identity import Identity
from moyin.system.bounded import BoundedDict

IDENTITY_HEADER = "x-moyin-identity"
_OWNER_HEADER = "x-moyin-owner"
_ALGORITHM = "HS256"
_ISSUER = "moyin"
_LIFETIME_SECONDS = 120
# Signing costs as much as forwarding a request, so a token is reused for this long.
_REUSE_SECONDS = 30
_CACHE_SIZE = 4_096
# The time until which signed headers are reused, and the headers.
_CachedHeaders = tuple[float, Mapping[str, str]]


def derive_route_secret(signing_key: bytes, route: str) -> str:
    """Return the secret, in 64 hex digits, with which a route's service verifies signed identities.

    Every route has its own secret, derived from the stack's key, so that no service can forge
    identities for another service.
    """
    return hmac.new(signing_key, b"moyin/route/" + route.encode(), hashlib.sha256).hexdigest()


class IdentitySigner:
    """Signs the headers that identify callers to the service of one route.

    ``x-moyin-identity`` is a JWT (HS256): ``iss`` moyin, ``aud`` the route, ``sub`` the tenant,
    ``user``, ``key``, ``scopes``, ``iat``, ``exp``. ``x-moyin-owner`` repeats the tenant for logs.
    """

    def __init__(self, signing_key: bytes, route: str) -> None:
        self._secret = derive_route_secret(signing_key, route)
        self._route = route
        self._cache: BoundedDict[tuple[str, str, str | None, frozenset[str]], _CachedHeaders]
        self._cache = BoundedDict(_CACHE_SIZE)

    def build_identity_headers(self, identity: Identity | None) -> Mapping[str, str]:
        """Return the headers that identify the caller; no headers for an anonymous caller."""
        if identity is None:
            return {}
        cache_key = (identity.owner, identity.key_id, identity.user, identity.scopes)
        now = time.time()
        cached_headers = self._cache.get(cache_key)
        if cached_headers is None or cached_headers[0] < now:
            cached_headers = (now + _REUSE_SECONDS, self._sign_headers(identity, int(now)))
            self._cache[cache_key] = cached_headers
        return cached_headers[1]

    def _sign_headers(self, identity: Identity, now: int) -> Mapping[str, str]:
        claims = {
            "iss": _ISSUER,
            "aud": self._route,
            "sub": identity.owner,
            "user": identity.user,
            "key": identity.key_id,
            "scopes": sorted(identity.scopes),
            "iat": now,
            "exp": now + _LIFETIME_SECONDS,
        }
        token = jwt.encode(claims, self._secret, algorithm=_ALGORITHM)
        return {_OWNER_HEADER: identity.owner, IDENTITY_HEADER: token}
