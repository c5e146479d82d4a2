"""The models app as ASGI, made of its parts; knows nothing of Ray Serve.

The calls that matter are answered before any framework sees them; FastAPI has the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from deployments.ingress import new_fastapi
from deployments.models.errors import render_error, renderer_of
from deployments.models.health import watch_health
from deployments.models.openapi import describe
from deployments.models.routes.calls import CallRoute, OllamaRoute
from deployments.models.routes.count_tokens import count_routes
from deployments.models.routes.deferral import Deferral
from deployments.models.routes.feedback import ADMIN_PATHS, feedback_routes
from deployments.models.routes.health import health_routes
from deployments.models.routes.images import IMAGES_PATH, ImageRules, image_routes
from deployments.models.routes.judged import JudgeBooks
from deployments.models.routes.models import model_routes
from deployments.models.routes.ollama import ollama_routes
from deployments.models.routes.requests import request_routes
from deployments.models.routes.route import route_routes
from deployments.swagger import DOCS
from moyin.access.gatekeeper import Authenticator, Gatekeeper
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.limits import Meter
from moyin.access.gatekeeper.observation import Observer
from moyin.client.gateway import GatewayClient
from moyin.domain.identity import JOBS_WRITE, ORG_ADMIN, TEXT
from moyin.errors import MoyinError
from moyin.jobs.images import Images
from moyin.store.quality import QualityStore
from moyin.store.usage import UsageLedger
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import (
    OllamaChatCodec,
    OllamaEmbedCodec,
    OllamaEmbeddingsCodec,
    OllamaGenerateCodec,
)
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.routing.feedback import Feedback
from moyin.text.routing.learning import Learning
from moyin.text.routing.router import Router

__all__ = ["ModelsParts", "QualityParts", "new_app", "render_stream_error"]

_PREFIX = "/v1"
_PUBLIC = frozenset(
    f"{_PREFIX}/{name}" for name in ("health", "healthz", "readyz", "openapi.json", *DOCS)
)
# Pictures are jobs, a tenant's learning is its administrator's. FastAPI serves both forms of a path.
_SCOPES = {
    prefix + path: needed
    for path, needed in {IMAGES_PATH: JOBS_WRITE, **dict.fromkeys(ADMIN_PATHS, ORG_ADMIN)}.items()
    for prefix in ("", _PREFIX)
}
# Of the protocols' chat calls; the first is meant when nobody says which.
_CODECS: Mapping[str, ProtocolCodec] = {
    "openai": OpenAICodec(),
    "anthropic": AnthropicCodec(),
    "ollama": OllamaChatCodec(),
}


@dataclass(frozen=True, kw_only=True)
class QualityParts:
    """What learns from the quality of answers.

    Attributes:
        judge: None: there can't be one.
    """

    store: QualityStore
    learning: Learning
    feedback: Feedback
    judge: JudgeBooks | None = None


@dataclass(frozen=True, kw_only=True)
class ModelsParts:
    """What the routes work with.

    Attributes:
        meter: counts for limits and budgets; None: nobody is limited here.
        jobs: takes calls that ask for a job.
        quality: where signals of quality are kept, and what is learned from them.
        images: makes pictures; ``image_rules`` tells the rules in force.
        lifespan: opens what must be open before the first request, and closes all of it.
    """

    text_router: Router
    jobs: GatewayClient
    images: Images
    image_rules: Callable[[], ImageRules]
    ledger: UsageLedger
    quality: QualityParts
    authenticator: Authenticator
    observer: Observer
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    meter: Meter | None = None


def new_app(parts: ModelsParts) -> Gatekeeper:
    """The models app behind its gatekeeper. It serves paths below ``/v1``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.lifespan():
            watch = asyncio.create_task(watch_health(parts.text_router))
            yield
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    rest = new_fastapi(
        "Moyin models",
        errors=render_error,
        description="Any client on any model: OpenAI's, Anthropic's and Ollama's protocols.",
        lifespan=lifespan,
    )
    rest.include_router(health_routes(parts.text_router))
    rest.include_router(count_routes(parts.text_router))
    rest.include_router(model_routes(parts.text_router))
    rest.include_router(ollama_routes(parts.text_router))
    rest.include_router(request_routes(parts.ledger))
    rest.include_router(route_routes(parts.text_router, _CODECS))
    quality = parts.quality
    rest.include_router(
        feedback_routes(
            parts.text_router,
            quality.feedback,
            quality.learning,
            quality.store,
            quality.judge,
        )
    )
    rest.include_router(image_routes(parts.images, parts.image_rules))
    describe(rest, lambda path: f"{_PREFIX}{path}" in _PUBLIC)
    calls = _calls(parts)
    guard = AuthorizationMiddleware(
        _HotPathRouter(calls, rest),
        scope_of=_scope_of,
        meter=parts.meter,
        priced=frozenset(f"{_PREFIX}{path}" for path in calls),
    )
    return Gatekeeper(
        guard,
        service="models",
        authenticator=parts.authenticator,
        errors=render_error,
        max_body_bytes=parts.max_body_bytes,
        observer=parts.observer,
        public=_PUBLIC,
        stream_errors=render_stream_error,
        errors_of=renderer_of,
    )


def _calls(parts: ModelsParts) -> dict[str, CallRoute]:
    """The calls that a model answers, by their path below ``/v1``."""
    text_router = parts.text_router
    deferral = Deferral(text_router, parts.jobs)
    return {
        "/chat/completions": CallRoute(OpenAICodec(), text_router, deferral),
        "/embeddings": CallRoute(OpenAIEmbeddingsCodec(), text_router, deferral),
        "/messages": CallRoute(AnthropicCodec(), text_router, deferral),
        "/ollama/api/chat": OllamaRoute(OllamaChatCodec(), text_router, deferral),
        "/ollama/api/generate": OllamaRoute(OllamaGenerateCodec(), text_router, deferral),
        "/ollama/api/embed": CallRoute(OllamaEmbedCodec(), text_router, deferral),
        "/ollama/api/embeddings": CallRoute(OllamaEmbeddingsCodec(), text_router, deferral),
    }


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """The event that ends a stream under way, in the protocol that ``path`` belongs to."""
    if path.startswith(f"{_PREFIX}/ollama"):
        codec = _CODECS["ollama"]
    else:
        codec = _CODECS["anthropic" if path.startswith(f"{_PREFIX}/messages") else "openai"]
    if media_type != codec.stream_type.partition(b";")[0].decode():
        return None
    return codec.error_event(error, request_id)


def _scope_of(scope: Scope) -> str:
    """Return the scope that a path needs; nearly all are text."""
    return _SCOPES.get(scope["path"], TEXT)


class _HotPathRouter:
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
