"""Contains the ASGI middleware around every replica's HTTP server, which Serve adds by a hook.

The environment variable ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names `middlewares` on every
node (``moyin up`` sets it, ``moyin ray-env`` prints it). Without the hook, apps run more slowly and
lack CORS and the memory limits, gRPC listens on every interface and takes messages of any size, and
clients can change time limits.
"""

from __future__ import annotations

from typing import Any

import uvicorn
from ray.serve._private import default_impl
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import ServeErrorMiddleware
from deployments.grpc_server import install_grpc_server
from deployments.server import ReplicaServer, limit_memory
from moyin.access.gatekeeper.asgi import REQUEST_ID_PATTERN
from moyin.settings import Settings

# Response headers that pages of other origins may read, besides the CORS-safelisted ones.
_EXPOSED_HEADERS = (
    "location", "retry-after", "x-request-id", "ratelimit-limit", "ratelimit-remaining",
    "ratelimit-reset", "x-moyin-backend", "x-moyin-model", "x-moyin-route", "x-moyin-cost-usd",
)  # fmt: skip
# Serve reads these headers, which would let clients disable a time limit.
_FORBIDDEN_HEADERS = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})
_FILTERED_HEADERS = _FORBIDDEN_HEADERS | {b"x-request-id"}
# The gatekeeper detects disconnects with a task for long requests only, so Serve's own two tasks
# per request are disabled.
_NO_DISCONNECT_CHECK = (b"x-request-disconnect-disabled", b"?1")


def middlewares() -> list[Middleware]:
    """Return the middleware of a replica, limit its memory, and replace its HTTP and gRPC listeners.

    Serve calls this when a replica starts its HTTP server, just before its gRPC server.
    """
    settings = Settings()
    limit_memory(settings.replica_memory_mib)
    # Serve creates its HTTP server from this attribute afterwards.
    uvicorn.Server = ReplicaServer  # type: ignore[misc]
    _bind_grpc_to(settings.grpc_host)
    install_grpc_server()
    # The innermost middleware is first. Pages can read Serve's errors because CORS wraps them.
    return [
        Middleware(ServeErrorMiddleware),
        *new_cors_middleware(settings.cors_origins),
        Middleware(_RequestHeaderFilter),
    ]


def new_cors_middleware(origins: str) -> list[Middleware]:
    """Return the middleware that lets pages of ``origins`` (separated by commas) call the API.

    Credentials are not allowed, because such pages send keys and tokens in headers. Session cookies
    are for the console and ComfyUI's page, which the gateway itself serves.
    """
    allowed_origins = [origin.strip() for origin in origins.split(",") if origin.strip()]
    if not allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
            max_age=3600,
        )
    ]


class _RequestHeaderFilter:
    """Removes request headers by which a client could change Serve's behaviour."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            allowed_headers = [
                h for h in scope["headers"] if h[0] not in _FILTERED_HEADERS or _is_allowed(*h)
            ]
            allowed_headers.append(_NO_DISCONNECT_CHECK)
            scope["headers"] = allowed_headers
        await self._app(scope, receive, send)


def _is_allowed(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        # Serve copies the id into every log line and into the response.
        return REQUEST_ID_PATTERN.fullmatch(value.decode("latin-1")) is not None
    return name not in _FORBIDDEN_HEADERS


def _bind_grpc_to(host: str) -> None:
    """Make Serve's gRPC servers listen only on ``host``; Serve has no setting for that."""

    def add_grpc_address(server: Any, address: str) -> None:
        server.add_insecure_port(f"{host}:{address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add_grpc_address
