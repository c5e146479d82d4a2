"""The models app as ASGI, made of its parts; knows nothing of Ray Serve.

The two calls that matter are answered before any framework sees them; FastAPI has the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from deployments.ingress import new_fastapi
from deployments.models.health import watch_health
from deployments.models.openapi import describe
from deployments.models.routes.calls import CallRoute
from deployments.models.routes.chat_completions import chat_completions
from deployments.models.routes.health import health_routes
from deployments.models.routes.messages import messages
from deployments.models.routes.models import model_routes
from deployments.models.routes.requests import request_routes
from moyin.errors import MoyinError
from moyin.gatekeeper import Authenticator, ErrorBody, Gatekeeper, problem_details
from moyin.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.gatekeeper.observation import Observer
from moyin.protocols.anthropic.errors import render_error as anthropic_error
from moyin.protocols.openai.errors import render_error as openai_error
from moyin.routing.dispatch import Dispatcher
from moyin.store.usage import UsageLedger

__all__ = ["ModelsParts", "new_app", "render_error"]

_PREFIX = "/v1"
_PUBLIC = frozenset(
    f"{_PREFIX}/{name}"
    for name in ("healthz", "readyz", "docs", "openapi.json", "docs/oauth2-redirect")
)
_OURS = tuple(f"{_PREFIX}/{name}" for name in ("requests", "healthz", "readyz"))


@dataclass(frozen=True, kw_only=True)
class ModelsParts:
    """What the routes work with.

    Attributes:
        lifespan: opens what must be open before the first request, and closes all of it.
    """

    dispatcher: Dispatcher
    ledger: UsageLedger
    authenticator: Authenticator
    observer: Observer
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]


def new_app(parts: ModelsParts) -> Gatekeeper:
    """The models app behind its gatekeeper. It serves paths below ``/v1``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.lifespan():
            watch = asyncio.create_task(watch_health(parts.dispatcher))
            yield
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    rest = new_fastapi(
        "Moyin models",
        errors=render_error,
        description="Any client on any model: OpenAI's and Anthropic's protocols, one router.",
        lifespan=lifespan,
        redoc_url=None,
    )
    rest.include_router(health_routes(parts.dispatcher))
    rest.include_router(model_routes(parts.dispatcher))
    rest.include_router(request_routes(parts.ledger))
    describe(rest)
    calls = {
        "/chat/completions": chat_completions(parts.dispatcher),
        "/messages": messages(parts.dispatcher),
    }
    return Gatekeeper(
        _Front(calls, rest),
        service="models",
        authenticator=parts.authenticator,
        errors=render_error,
        max_body_bytes=parts.max_body_bytes,
        observer=parts.observer,
        public=_PUBLIC,
    )


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """An error in the shape of the protocol that ``path`` belongs to."""
    if path.startswith(f"{_PREFIX}/messages"):
        return anthropic_error(error, request_id, path)
    if path.startswith(_OURS):
        return problem_details(error, request_id, path)
    return openai_error(error, request_id, path)


class _Front:
    """Sends the calls to their routes, everything else to FastAPI."""

    def __init__(self, calls: Mapping[str, CallRoute], rest: ASGIApp) -> None:
        self._calls = {f"{_PREFIX}{path}": route for path, route in calls.items()}
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self._calls.get(scope["path"])
            if route is not None:
                await route(scope, receive, send)
                return
        await self._rest({**scope, "root_path": scope.get("root_path") or _PREFIX}, receive, send)
