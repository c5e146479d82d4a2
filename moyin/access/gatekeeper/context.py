"""Passes what the gatekeeper knows about a request to the app."""

from __future__ import annotations

from dataclasses import dataclass, field

from moyin.access.gatekeeper.asgi import Scope
from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope, MissingKey

__all__ = ["RequestContext", "context"]


# Not frozen: one is made per request, and freezing doubles the cost.
@dataclass(kw_only=True, slots=True)
class RequestContext:
    """Holds the identity and the id of a request.

    Attributes:
        identity: the caller; None only on public paths.
        required_scopes: the scopes that `require` checked so far; a long-lived connection ends when
            its caller loses one.
    """

    request_id: str
    identity: Identity | None
    required_scopes: set[str] = field(default_factory=set)

    @property
    def caller(self) -> Identity:
        """The identity of the caller.

        Raises:
            MissingKey: the request has no key, on a public path.
        """
        if self.identity is None:
            raise MissingKey("this needs an API key")
        return self.identity

    @property
    def owner(self) -> str:
        """The caller's tenant.

        Raises:
            MissingKey: the request has no key, on a public path.
        """
        return self.caller.owner

    def require(self, scope: str) -> None:
        """Refuse a caller without ``scope``, now and while the connection lasts.

        Raises:
            InsufficientScope: the caller lacks the scope, which the error names.
        """
        self.required_scopes.add(scope)
        if self.identity is None or not self.identity.has_scope(scope):
            raise InsufficientScope(f"this needs the scope {scope}", details={"scope": scope})


def context(scope: Scope) -> RequestContext:
    """Return the context that the gatekeeper has put into the ASGI scope."""
    request_context: RequestContext = scope["moyin"]
    return request_context
