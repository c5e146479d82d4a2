"""Defines the context of a request, which the gatekeeper adds to the ASGI scope for the app."""

from __future__ import annotations

from dataclasses import dataclass, field

from moyin.access.gatekeeper.asgi import Scope
from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope, MissingKey


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class RequestContext:
    """Holds the id of a request and the identity of its caller.

    Attributes:
        identity: the caller, or None on a public path.
        required_scopes: the scopes that `require` has checked; the credential monitor ends a
            long-lived connection when its caller loses one.
        keeps_body: False if the handler does not keep the request's body in memory. The handler sets
            it before it reads the body, which then does not count for `BodyMemory`.
    """

    request_id: str
    identity: Identity | None
    required_scopes: set[str] = field(default_factory=set)
    keeps_body: bool = True

    @property
    def caller(self) -> Identity:
        """The identity of the caller, who has a key or a session.

        Raises:
            MissingKey: a request on a public path has no key.
            InsufficientScope: the caller has an event token; use `reader` to allow it.
        """
        if self.reader.job is not None:
            raise InsufficientScope(
                "an event token can only read one job's events and files; send an API key instead"
            )
        return self.reader

    @property
    def reader(self) -> Identity:
        """The identity of the caller, who may have an event token instead of a key.

        Routes that use it must check `Identity.may_read_job`.
        """
        if self.identity is None:
            raise MissingKey(
                "this operation requires an API key; send 'Authorization: Bearer <key>'"
            )
        return self.identity

    @property
    def owner(self) -> str:
        """The caller's tenant; raises `MissingKey` if a request on a public path has no key."""
        return self.caller.owner

    def require(self, scope: str) -> None:
        """Raise `InsufficientScope` unless the caller has ``scope``.

        A long-lived request also ends when the caller loses the scope.
        """
        self.required_scopes.add(scope)
        if self.identity is None or not self.identity.has_scope(scope):
            raise InsufficientScope(
                f"the caller lacks the required scope {scope}; use a key that has it",
                details={"scope": scope},
            )


def context(scope: Scope) -> RequestContext:
    """Return the context of a request, which the gatekeeper has added to its ASGI scope."""
    request_context: RequestContext = scope["moyin"]
    return request_context
