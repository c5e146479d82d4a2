"""What a request meets first behind the gatekeeper: the routes of other services, then our own."""

from __future__ import annotations

from deployments.errors import app_of
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.comfy_api.protocol.paths import PAGE, inside
from moyin.errors import ServiceUnavailable
from moyin.proxy import Proxy

__all__ = ["ProxyOrApp"]

# As long as HAProxy's own errors say.
_RETRY_SECONDS = 5


class ProxyOrApp:
    """Sends what the route table knows to the proxy, everything else to ``rest``.

    Args:
        proxy: decides which requests are for it.
        guarded: the same behind the limits of who calls. Another app behind this door has a guard
            of its own: its requests would be counted twice.
    """

    def __init__(self, proxy: Proxy, *, guarded: ASGIApp, rest: ASGIApp) -> None:
        self._proxy = proxy
        self._guarded = guarded
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (app := app_of(scope["path"])) is not None:
            # HAProxy gives these to their app; it does not know the app yet, or no more.
            raise ServiceUnavailable(
                f"the app that serves /{app} is not running; try again", retry_after=_RETRY_SECONDS
            )
        route = self._proxy.match(scope) if scope["type"] != "lifespan" else None
        if route is None:
            await self._rest(_as_served(scope), receive, send)
        elif route.pass_credentials:
            await self._proxy(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)


def _as_served(scope: Scope) -> Scope:
    """With the path under which what ComfyUI's page asks for is served."""
    path = inside(scope["path"]) if scope["type"] != "lifespan" else None
    if path is None:
        return scope
    raw: bytes = scope.get("raw_path") or b""
    served = {"path": path}
    if raw.startswith(PAGE.encode()):
        return {**scope, **served, "raw_path": raw[len(PAGE) - 1 :]}
    return {**scope, **served}
