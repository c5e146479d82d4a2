"""What the gatekeeper knows of a request, for the app behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from moyin.access.gatekeeper.asgi import Scope
from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope, MissingKey

__all__ = ["RequestContext", "context"]


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class RequestContext:
    """``identity`` is None only on public paths.

    Attributes:
        needs: the scopes that were required so far; a connection that lasts ends without them.
    """

    request_id: str
    identity: Identity | None
    needs: set[str] = field(default_factory=set)

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

    def require(self, scope: str) -> None:
        """Refuse a caller who lacks ``scope``, now and for as long as the connection lasts.

        Raises:
            InsufficientScope: naming the scope.
        """
        self.needs.add(scope)
        if self.identity is None or not self.identity.has_scope(scope):
            raise InsufficientScope(f"this needs the scope {scope}", details={"scope": scope})


def context(scope: Scope) -> RequestContext:
    """The context that the gatekeeper put into the scope."""
    found: RequestContext = scope["moyin"]
    return found
