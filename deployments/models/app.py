"""Assembles the models app as an ASGI app, without Ray Serve.

Model calls bypass FastAPI because they are the hot path; FastAPI serves all other routes.
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
from deployments.models.routes.judged import JudgeStatus
from deployments.models.routes.models import model_routes
from deployments.models.routes.ollama import ollama_routes
from deployments.models.routes.requests import request_routes
from deployments.models.routes.responses import ResponsesRoute, response_routes
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
from moyin.store.stored_responses import StoredResponses
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
from moyin.text.protocol.responses.codec import ResponsesCodec
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.router import Router

__all__ = ["ModelsParts", "QualityParts", "new_app", "render_stream_error"]

_PREFIX = "/v1"
_PUBLIC = frozenset(
    f"{_PREFIX}/{name}" for name in ("health", "healthz", "readyz", "openapi.json", *DOCS)
)
# Image requests create jobs. Only administrators may change what the router learned for their
# tenant. FastAPI serves each path with and without the prefix.
_SCOPES = {
    prefix + path: needed
    for path, needed in {IMAGES_PATH: JOBS_WRITE, **dict.fromkeys(ADMIN_PATHS, ORG_ADMIN)}.items()
    for prefix in ("", _PREFIX)
}
# The codecs of the chat protocols. The first is the default of `POST /v1/route`.
_CODECS: Mapping[str, ProtocolCodec] = {
    "openai": OpenAICodec(),
    "anthropic": AnthropicCodec(),
    "ollama": OllamaChatCodec(),
    "responses": ResponsesCodec(),
}


@dataclass(frozen=True, kw_only=True)
class QualityParts:
    """Holds the services that record and learn the quality of answers.

    Attributes:
        judge: None if the app runs without a judge.
    """

    store: QualityStore
    learning: QualityLearner
    feedback: FeedbackService
    judge: JudgeStatus | None = None


@dataclass(frozen=True, kw_only=True)
class ModelsParts:
    """Holds the services that the routes use.

    Attributes:
        meter: counts requests and costs for limits and budgets; None disables both.
        jobs: submits calls that clients send with ``Prefer: respond-async`` as jobs.
        responses: stores answers of the Responses API.
        images: generates pictures by jobs; ``image_rules`` returns the current rules.
        lifespan: starts the services before the first request and closes them at shutdown.
    """

    text_router: Router
    jobs: GatewayClient
    images: Images
    image_rules: Callable[[], ImageRules]
    ledger: UsageLedger
    responses: StoredResponses
    quality: QualityParts
    authenticator: Authenticator
    observer: Observer
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    meter: Meter | None = None


def new_app(parts: ModelsParts) -> Gatekeeper:
    """Build the models app behind its gatekeeper. It serves paths below ``/v1``."""

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
        description="Serves every model through OpenAI's, Anthropic's and Ollama's protocols.",
        lifespan=lifespan,
    )
    rest.include_router(health_routes(parts.text_router))
    rest.include_router(count_routes(parts.text_router))
    rest.include_router(model_routes(parts.text_router))
    rest.include_router(ollama_routes(parts.text_router))
    rest.include_router(request_routes(parts.ledger))
    rest.include_router(response_routes(parts.responses))
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
    """Return the routes of the model calls by their path below ``/v1``."""
    text_router = parts.text_router
    deferral = Deferral(text_router, parts.jobs)
    return {
        "/chat/completions": CallRoute(OpenAICodec(), text_router, deferral),
        "/embeddings": CallRoute(OpenAIEmbeddingsCodec(), text_router, deferral),
        "/responses": ResponsesRoute(text_router, deferral, parts.responses),
        "/messages": CallRoute(AnthropicCodec(), text_router, deferral),
        "/ollama/api/chat": OllamaRoute(OllamaChatCodec(), text_router, deferral),
        "/ollama/api/generate": OllamaRoute(OllamaGenerateCodec(), text_router, deferral),
        "/ollama/api/embed": CallRoute(OllamaEmbedCodec(), text_router, deferral),
        "/ollama/api/embeddings": CallRoute(OllamaEmbeddingsCodec(), text_router, deferral),
    }


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render the error event that ends a stream, in the protocol of ``path``.

    Return None if ``media_type`` is not the protocol's stream type.
    """
    below = path.removeprefix(_PREFIX)
    names = {"/ollama": "ollama", "/messages": "anthropic", "/responses": "responses"}
    name = next((names[start] for start in names if below.startswith(start)), "openai")
    codec = _CODECS[name]
    if media_type != codec.stream_content_type.partition(b";")[0].decode():
        return None
    return codec.render_error_event(error, request_id)


def _scope_of(scope: Scope) -> str:
    """Return the scope that a path requires; most require the text scope."""
    return _SCOPES.get(scope["path"], TEXT)


class _HotPathRouter:
    """Sends model calls to their routes and all other requests to FastAPI."""

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
