"""Provides an authenticator for tests with a fixed set of keys."""

from __future__ import annotations

from collections.abc import Mapping

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey

__all__ = ["StaticAuthenticator"]


class StaticAuthenticator:
    """Authenticates the keys in ``identities``, which a test may change at any time."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self.identities = dict(identities)

    async def authenticate(self, credential: str) -> Identity:
        if credential not in self.identities:
            raise InvalidKey("the API key is not valid")
        return self.identities[credential]

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        return {key: self.identities[key] for key in credentials if key in self.identities}
