"""An authenticator that knows some keys by heart."""

from __future__ import annotations

from collections.abc import Mapping

from moyin.domain.identity import Identity
from moyin.errors import InvalidKey

__all__ = ["KnownKeys"]


class KnownKeys:
    """Proves the keys in ``identities``, which may change at any time."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self.identities = dict(identities)

    async def authenticate(self, presented: str) -> Identity:
        if presented not in self.identities:
            raise InvalidKey("the API key is not valid")
        return self.identities[presented]

    async def recheck(self, held: Mapping[str, Identity]) -> Mapping[str, Identity]:
        return {key: self.identities[key] for key in held if key in self.identities}
