"""Middlewares around every replica's HTTP server, outside Serve's own code.

Serve calls `middlewares` through its hook, which is named by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` on every node (``moyin up`` sets it, ``moyin
ray-env`` prints it). Apps also run without it, but slower, without CORS and a bound on memory, with
gRPC on every interface, and clients may change time limits.
"""

from __future__ import annotations

from typing import Any

import uvicorn
from ray.serve._private import default_impl
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.headers import cors
from deployments.memory import guard_memory
from deployments.outage import OutageErrors
from deployments.server import Server
from moyin.access.gatekeeper.request import REQUEST_ID_PATTERN
from moyin.settings import Settings

__all__ = ["middlewares"]

# Serve lets clients set these headers. Clients must not switch off a time limit.
_STRIPPED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})
# The gatekeeper watches for clients that disconnect. It needs a task only for long requests, while
# Serve would create two tasks for every request.
_DISCONNECT_IS_OURS = (b"x-request-disconnect-disabled", b"?1")
_EXAMINED = _STRIPPED | {b"x-request-id"}


class _ServeHeaderFilter:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            kept = [h for h in scope["headers"] if h[0] not in _EXAMINED or _admissible(*h)]
            kept.append(_DISCONNECT_IS_OURS)
            scope["headers"] = kept
        await self._app(scope, receive, send)


def _admissible(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        # Serve copies the id into every log line and into the response.
        return REQUEST_ID_PATTERN.fullmatch(value.decode("latin-1")) is not None
    return name not in _STRIPPED


def middlewares() -> list[Middleware]:
    """Return the middlewares, and prepare the replica.

    Serve calls this when a replica starts its HTTP server, just before its gRPC server.
    """
    settings = Settings()
    guard_memory(settings.replica_memory_mib)
    # Serve looks the class up there a moment later.
    uvicorn.Server = Server  # type: ignore[misc]
    _keep_grpc_to(settings.grpc_host)
    # Innermost first. CORS is outside of OutageErrors, so that pages can read those errors, too.
    return [Middleware(OutageErrors), *cors(settings.cors_origins), Middleware(_ServeHeaderFilter)]


def _keep_grpc_to(host: str) -> None:
    """Let Serve's gRPC servers listen on ``host`` only.

    Serve has no setting for it and listens on every interface, so its function that opens the port is
    replaced.
    """

    def add_grpc_address(server: Any, address: str) -> None:
        server.add_insecure_port(f"{host}:{address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add_grpc_address
