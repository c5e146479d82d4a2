"""`AuthorizationMiddleware`: what a proven caller may do, and how much of it. Between the gatekeeper and the app.

Callers without limits pass at the cost of a few look-ups.
"""

from __future__ import annotations

from collections.abc import Callable

from moyin.access.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send
from moyin.access.gatekeeper.limits import Admission, Meter

__all__ = ["AuthorizationMiddleware", "ScopeOf", "admission_of"]

_ADMISSION = "moyin.admission"
# The scope, in the other sense of the word, that a request needs; None: the app decides.
ScopeOf = Callable[[Scope], str | None]


class AuthorizationMiddleware:
    """Wraps an ASGI app that a gatekeeper stands before.

    Args:
        meter: None: nobody is limited here.
        priced: exact paths whose app takes the admission itself, once it knows the price; what
            is answered there without a price, such as from a cache, costs a request and no money.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        scope_of: ScopeOf,
        meter: Meter | None,
        priced: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._scope_of = scope_of
        self._meter = meter
        self._priced = priced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            InsufficientScope: naming the scope.
            RateLimited, BudgetExceeded, ServiceUnavailable: see `Admission.reserve`.
        """
        identity = scope["moyin"].identity if scope["type"] != "lifespan" else None
        if identity is None:
            await self._app(scope, receive, send)
            return
        needed = self._scope_of(scope)
        if needed is not None:
            scope["moyin"].require(needed)
        if not identity.limits or self._meter is None:
            await self._app(scope, receive, send)
            return
        admission = Admission(self._meter, identity.limits, identity.owner)
        try:
            if scope["path"] not in self._priced:
                await admission.reserve()
            scope[_ADMISSION] = admission
            await self._app(scope, receive, _telling(admission, send))
        finally:
            admission.release()


def admission_of(scope: Scope) -> Admission | None:
    """For the app on a priced path: what to take the price out of; None: nobody counts it."""
    found: Admission | None = scope.get(_ADMISSION)
    return found


def _telling(admission: Admission, send: Send) -> Send:
    """``send`` that puts the limits into the answer's headers."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            if not admission.taken:
                await admission.reserve()
            message["headers"] = [*message.get("headers", ()), *admission.headers]
        await send(message)

    return told
