"""What the gatekeeper knows of a request, for the app behind it."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.domain.identity import Identity
from moyin.errors import MissingKey
from moyin.gatekeeper.asgi import Scope

__all__ = ["RequestContext", "context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """``identity`` is None only on public paths."""

    request_id: str
    identity: Identity | None

    @property
    def caller(self) -> Identity:
        """Who calls.

        Raises:
            MissingKey: on a public path without one.
        """
        if self.identity is None:
            raise MissingKey("this needs an API key")
        return self.identity

    @property
    def owner(self) -> str:
        """The caller's tenant.

        Raises:
            MissingKey: on a public path without one.
        """
        return self.caller.owner


def context(scope: Scope) -> RequestContext:
    """The context that the gatekeeper put into the scope."""
    found: RequestContext = scope["moyin"]
    return found
