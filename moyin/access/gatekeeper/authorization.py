"""Checks the scopes and limits of authenticated callers, between the gatekeeper and the app.

For callers without limits it costs a few dictionary look-ups.
"""

from __future__ import annotations

from collections.abc import Callable

from moyin.access.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send
from moyin.access.gatekeeper.limits import Admission, Meter

__all__ = ["AuthorizationMiddleware", "ScopeOf", "admission_of"]

_ADMISSION = "moyin.admission"
# Returns the authorization scope that a request (an ASGI scope) needs; None: the app decides.
ScopeOf = Callable[[Scope], str | None]


class AuthorizationMiddleware:
    """Wraps an ASGI app behind a gatekeeper.

    Args:
        meter: counts requests against limits; None: no limits apply.
        priced: exact paths whose app reserves the price itself once it knows it. A response without
            a price, such as one from a cache, counts as a request and costs no money.
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
        """Call the app if the caller has the needed scope and its limits allow the request.

        Raises:
            InsufficientScope: the caller lacks the scope, which the error names.
            RateLimited, BudgetExceeded, ServiceUnavailable: see `Admission.reserve`.
        """
        identity = scope["moyin"].identity if scope["type"] != "lifespan" else None
        if identity is None:
            await self._app(scope, receive, send)
            return
        required = self._scope_of(scope)
        if required is not None:
            scope["moyin"].require(required)
        if not identity.limits or self._meter is None:
            await self._app(scope, receive, send)
            return
        admission = Admission(self._meter, identity.limits, identity.owner)
        try:
            if scope["path"] not in self._priced:
                await admission.reserve()
            scope[_ADMISSION] = admission
            await self._app(scope, receive, _add_limit_headers(admission, send))
        finally:
            admission.release()


def admission_of(scope: Scope) -> Admission | None:
    """Return the admission of a request on a priced path; None: no limits apply."""
    admission: Admission | None = scope.get(_ADMISSION)
    return admission


def _add_limit_headers(admission: Admission, send: Send) -> Send:
    """Return a ``send`` that adds the ``RateLimit-*`` headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            if not admission.taken:
                await admission.reserve()
            message["headers"] = [*message.get("headers", ()), *admission.headers]
        await send(message)

    return send_with_headers
