"""Sends a request to another service's route or to the gateway's own app."""

from __future__ import annotations

from deployments.errors import find_app_prefix
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.comfy_api.protocol.paths import PAGE, server_path
from moyin.errors import ServiceUnavailable
from moyin.proxy import Proxy

__all__ = ["ProxyOrApp"]

# The same as in HAProxy's own errors.
_RETRY_AFTER_SECONDS = 5


class ProxyOrApp:
    """Sends requests that match the route table to the proxy, and all others to ``app``.

    Args:
        guarded: the proxy wrapped in rate limiting. Moyin's other apps have their own, so requests
            to them bypass it and are not counted twice.
        app: the gateway's own app.
    """

    def __init__(self, proxy: Proxy, *, guarded: ASGIApp, app: ASGIApp) -> None:
        self._proxy = proxy
        self._guarded = guarded
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (app := find_app_prefix(scope["path"])) is not None:
            # HAProxy sends these to their app, but it does not know the app yet, or no longer.
            raise ServiceUnavailable(
                f"the app that serves /{app} is not running; try again",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        route = self._proxy.match(scope) if scope["type"] != "lifespan" else None
        if route is None:
            await self._app(_with_server_path(scope), receive, send)
        elif route.pass_credentials:
            await self._proxy(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)


def _with_server_path(scope: Scope) -> Scope:
    """Return the scope with the API's path instead of the one that ComfyUI's page requests."""
    path = server_path(scope["path"]) if scope["type"] != "lifespan" else None
    if path is None:
        return scope
    raw: bytes = scope.get("raw_path") or b""
    if raw.startswith(PAGE.encode()):
        return {**scope, "path": path, "raw_path": raw[len(PAGE) - 1 :]}
    return {**scope, "path": path}
