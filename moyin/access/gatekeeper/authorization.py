"""Implements the ASGI middleware that checks scopes and limits, between the gatekeeper and an app."""

from __future__ import annotations

from collections.abc import Callable

from moyin.access.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send
from moyin.access.gatekeeper.limits import Admission, RequestMeter

_ADMISSION = "moyin.admission"
# Returns the authorization scope that a request (an ASGI scope) needs, or None if the app checks it.
ScopeSelector = Callable[[Scope], str | None]


class AuthorizationMiddleware:
    """Checks the scope of each caller and counts the request against the caller's limits.

    The gatekeeper must wrap this middleware, since it authenticates the callers.

    Args:
        scope_of: selects the scope that a request needs.
        meter: counts requests against limits; if None, no limits apply.
        priced_paths: exact paths whose app calls `Admission.reserve` itself, with the maximum cost. If
            the app responds without that call, for example from a cache, the request is free.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        scope_of: ScopeSelector,
        meter: RequestMeter | None,
        priced_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._scope_of = scope_of
        self._meter = meter
        self._priced_paths = priced_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app if the caller has the required scope and no limit is exceeded.

        Raises:
            InsufficientScope: the caller lacks the scope.
            RateLimited, BudgetExceeded: a limit or a budget is exceeded.
            ServiceUnavailable: Valkey is unavailable, and the settings reject requests then.
        """
        identity = scope["moyin"].identity if scope["type"] != "lifespan" else None
        if identity is None:
            await self._app(scope, receive, send)
            return
        required_scope = self._scope_of(scope)
        if required_scope is not None:
            scope["moyin"].require(required_scope)
        if not identity.limits or self._meter is None:
            await self._app(scope, receive, send)
            return
        admission = Admission(self._meter, identity.limits, identity.owner)
        try:
            if scope["path"] not in self._priced_paths:
                await admission.reserve()
            scope[_ADMISSION] = admission
            await self._app(scope, receive, _add_limit_headers(admission, send))
        finally:
            admission.release()


def get_admission(scope: Scope) -> Admission | None:
    """Return the admission of the request, or None if the caller has no limits."""
    admission: Admission | None = scope.get(_ADMISSION)
    return admission


def set_admission(scope: Scope, admission: Admission) -> None:
    """Store the admission of a request that did not pass this middleware, for `get_admission`."""
    scope[_ADMISSION] = admission


def _add_limit_headers(admission: Admission, send: Send) -> Send:
    """Return an ASGI ``send`` that adds the ``RateLimit-*`` headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            if not admission.is_reserved:
                await admission.reserve()
            message["headers"] = [*message.get("headers", ()), *admission.headers]
        await send(message)

    return send_with_headers
