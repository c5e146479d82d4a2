"""The frame around every replica's HTTP server: Serve's hook for middlewares outside its own code.

Named by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` on every node (``moyin up`` sets it, ``moyin
switches`` prints it). Apps also run without it: slower, without a bound on memory and CORS, with
gRPC on every interface, and anybody may set time limits.
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
from moyin.access.gatekeeper.request import REQUEST_ID
from moyin.settings import Settings

__all__ = ["middlewares"]

# Serve lets clients set these. Nobody outside may switch off a time limit, and …
_STRIPPED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})
# … watching for clients that leave is the gatekeeper's work: it needs a task only for requests
# that last, where Serve makes two and a wait for every one.
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
        # Serve would put whatever it is into every log line and the answer.
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return name not in _STRIPPED


def middlewares() -> list[Middleware]:
    """What Serve asks for when a replica starts its HTTP server, just before the one for gRPC."""
    settings = Settings()
    guard_memory(settings.replica_memory_mib)
    # Serve takes it from there a moment later.
    uvicorn.Server = Server  # type: ignore[misc]
    _keep_grpc_to(settings.grpc_host)
    # From the inside out: pages of other sites may read errors of an outage as well.
    return [Middleware(OutageErrors), *cors(settings.cors_origins), Middleware(_ServeHeaderFilter)]


def _keep_grpc_to(host: str) -> None:
    """Serve's gRPC servers listen on every interface, and it has no switch for that.

    The function that opens their port is the one place where Serve lets others say how.
    """

    def add_grpc_address(server: Any, address: str) -> None:
        server.add_insecure_port(f"{host}:{address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add_grpc_address
