"""Builds the models app as an ASGI app in which, for speed, model calls bypass FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI

from deployments.ingress import new_fastapi
from deployments.models.backend_checks import check_backends_forever, new_health_routes
from deployments.models.batch_calls import BatchLineCaller
from deployments.models.errors import choose_renderer, render_error
from deployments.models.openapi import complete_openapi
from deployments.models.recent_calls import RecentCalls
from deployments.models.routes.backends import new_backend_routes
from deployments.models.routes.background_responses import BackgroundResponses
from deployments.models.routes.batches import new_batch_routes
from deployments.models.routes.calls import CallRoute, OllamaRoute
from deployments.models.routes.count_tokens import new_count_tokens_routes
from deployments.models.routes.deferral import JobSubmitter
from deployments.models.routes.explanation import new_explanation_routes
from deployments.models.routes.feedback import ADMIN_PATHS, new_feedback_routes
from deployments.models.routes.file_prompts import ChatRoute
from deployments.models.routes.files import FILES_PATH, new_file_routes
from deployments.models.routes.images import IMAGES_PATH, PictureRenderer, new_image_routes
from deployments.models.routes.judge_summary import JudgeStatus
from deployments.models.routes.message_batches import (
    MESSAGE_BATCHES_PATH,
    new_message_batch_routes,
)
from deployments.models.routes.models import new_model_routes
from deployments.models.routes.ollama import new_ollama_routes
from deployments.models.routes.ollama_hosts import is_blob_upload, new_ollama_host_routes
from deployments.models.routes.operations import new_operation_routes
from deployments.models.routes.responses import ResponsesRoute, new_response_routes
from deployments.models.routes.usage import new_usage_routes
from deployments.models.routing_config import BatchesConfig, ImagesConfig
from deployments.swagger import DOCS_PATHS
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.credential_finder import CredentialFinder
from moyin.access.gatekeeper.identity import Authenticator
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import Observer
from moyin.access.gatekeeper.replica_memory import MAX_IN_PROGRESS
from moyin.client.gateway import GatewayClient
from moyin.domain.identity import JOBS_WRITE, ORG_ADMIN, TEXT
from moyin.domain.text_batch import LineResult
from moyin.errors import MoyinError
from moyin.jobs.images import ImageJobs
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.quality import QualityStore
from moyin.store.stored_responses import StoredResponses
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageLedger
from moyin.store.usage_reports import UsageReports
from moyin.text.batches.native import NativeBatches
from moyin.text.batches.native_lines import NativeLines
from moyin.text.batches.runner import BatchRunner
from moyin.text.prompt_files import PromptFiles
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import (
    OllamaChatCodec,
    OllamaEmbedCodec,
    OllamaEmbeddingsCodec,
    OllamaGenerateCodec,
)
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.protocol.openai.completions import OpenAICompletionsCodec
from moyin.text.protocol.responses.codec import ResponsesCodec
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.operation_router import OperationRouter
from moyin.text.routing.router import Router

_PREFIX = "/v1"
_PUBLIC_PATHS = frozenset(
    f"{_PREFIX}/{name}" for name in ("health", "healthz", "readyz", "openapi.json", *DOCS_PATHS)
)
# Scopes of paths that require a scope other than text: image requests create jobs, and only
# administrators may change what the router learned for their tenant. FastAPI also serves paths
# without the prefix.
_SCOPES = {
    prefix + path: required
    for path, required in {IMAGES_PATH: JOBS_WRITE, **dict.fromkeys(ADMIN_PATHS, ORG_ADMIN)}.items()
    for prefix in ("", _PREFIX)
}
_LARGE_PATHS = frozenset({f"{_PREFIX}{FILES_PATH}", f"{_PREFIX}{MESSAGE_BATCHES_PATH}"})
_CODECS: Mapping[str, ProtocolCodec] = {
    "openai": OpenAICodec(),
    "anthropic": AnthropicCodec(),
    "ollama": OllamaChatCodec(),
    "responses": ResponsesCodec(),
}
# The paths of the calls that `POST /v1/route` explains, by the name of the protocol.
_EXPLAINED_PATHS: Mapping[str, str] = {
    "openai": "/chat/completions",
    "anthropic": "/messages",
    "ollama": "/ollama/api/chat",
    "responses": "/responses",
    "completions": "/completions",
    "generate": "/ollama/api/generate",
    "embeddings": "/embeddings",
}


@dataclass(frozen=True, kw_only=True)
class ModelsServices:
    """The services that the routes of the models app use.

    Attributes:
        jobs: submits calls with the header ``Prefer: respond-async`` as jobs.
        image_settings: returns the current settings of image requests.
        public_url: first part of links to pictures; if empty, the address that the client used.
        responses: stores answers of the Responses API, which later requests continue.
        batches: the batches of text requests, whose lines and files are in ``batch_lines``,
            ``files`` and ``blobs``.
        batch_settings: returns the current settings of batches.
        record_batch_line: called with the result of each batch line.
        max_file_bytes: maximum size of an upload, and of the body of a new batch.
        signals: stores the signals from which ``learning`` learns the quality of answers.
        on_models_changed: called when a server's models changed, to update the fleet.
        lifespan: starts the services before the first request and closes them at shutdown.
        meter: counts requests and costs for limits and budgets; if None, there are no limits.
        max_in_progress: the most requests, and the most WebSockets, of a tenant at a time.
        recent_calls: the calls of the last minutes.
    """

    text_router: Router
    jobs: GatewayClient
    images: ImageJobs
    image_settings: Callable[[], ImagesConfig]
    public_url: str = ""
    ledger: UsageLedger
    reports: UsageReports
    responses: StoredResponses
    batches: TextBatchStore
    batch_lines: BatchLineStore
    native_batches: NativeBatchStore
    files: FileStore
    blobs: BlobStore
    batch_settings: Callable[[], BatchesConfig] = BatchesConfig
    record_batch_line: Callable[[LineResult], None] | None = None
    signals: QualityStore
    learning: QualityLearner
    feedback: FeedbackService
    authenticator: Authenticator
    observer: Observer
    max_body_bytes: int
    max_file_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    meter: RequestMeter | None = None
    max_in_progress: int = MAX_IN_PROGRESS
    judge: JudgeStatus | None = None
    on_models_changed: Callable[[], None] | None = None
    recent_calls: RecentCalls = field(default_factory=RecentCalls)


def new_app(services: ModelsServices) -> Gatekeeper:
    """Build the models app, which serves paths below ``/v1``, behind its gatekeeper."""
    text_router = services.text_router
    job_submitter = JobSubmitter(text_router, services.jobs)
    background_responses = BackgroundResponses(services.responses, job_submitter, services.jobs)
    prompt_files = PromptFiles(services.files, services.blobs)
    call_routes = _new_call_routes(text_router, job_submitter)
    call_routes["/chat/completions"] = ChatRoute(text_router, job_submitter, prompt_files)
    call_routes["/responses"] = ResponsesRoute(
        text_router, job_submitter, services.responses, background_responses, prompt_files
    )
    batch_runner = _new_batch_runner(services, call_routes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.lifespan():
            health_check = asyncio.create_task(
                check_backends_forever(text_router, services.on_models_changed)
            )
            yield
            await batch_runner.close()
            health_check.cancel()
            await asyncio.gather(health_check, return_exceptions=True)

    fastapi = new_fastapi(
        "Moyin models",
        errors=render_error,
        description="Serves every model through OpenAI's, Anthropic's and Ollama's protocols.",
        lifespan=lifespan,
    )
    for routes in (
        new_health_routes(text_router),
        new_count_tokens_routes(text_router),
        new_model_routes(text_router),
        new_backend_routes(text_router, services.recent_calls),
        new_ollama_routes(text_router),
        new_ollama_host_routes(text_router, services.on_models_changed),
        new_usage_routes(
            services.ledger, services.reports, lambda: text_router.fleet, services.meter
        ),
        new_response_routes(services.responses, background_responses),
        new_batch_routes(services.batches, services.files, batch_runner),
        new_message_batch_routes(
            services.batches,
            services.files,
            services.blobs,
            services.public_url,
            services.max_body_bytes,
        ),
        new_file_routes(services.files, services.blobs),
        new_explanation_routes(
            text_router, {name: call_routes[path] for name, path in _EXPLAINED_PATHS.items()}
        ),
        new_feedback_routes(
            text_router, services.feedback, services.learning, services.signals, services.judge
        ),
        new_image_routes(services.images, services.image_settings, services.public_url),
    ):
        fastapi.include_router(routes)
    complete_openapi(fastapi, lambda path: f"{_PREFIX}{path}" in _PUBLIC_PATHS)
    operations = new_operation_routes(
        OperationRouter(lambda: text_router.fleet, text_router.accounting),
        services.images,
        PictureRenderer(services.images, services.image_settings, services.public_url),
    )
    hot_routes: dict[str, ASGIApp] = {**call_routes, **operations}
    guard = AuthorizationMiddleware(
        _HotPathRouter(hot_routes, fastapi),
        scope_of=lambda scope: _SCOPES.get(scope["path"], TEXT),
        meter=services.meter,
        priced_paths=frozenset(f"{_PREFIX}{path}" for path in hot_routes),
    )

    def get_body_limit(scope: Scope) -> int | None:
        if is_blob_upload(scope):
            return None
        return services.max_file_bytes if _may_have_large_body(scope) else services.max_body_bytes

    return Gatekeeper(
        guard,
        service="models",
        authenticator=services.authenticator,
        error_renderer=render_error,
        max_body_bytes=services.max_body_bytes,
        max_in_progress=services.max_in_progress,
        body_limit_of=get_body_limit,
        observer=services.observer,
        public_paths=_PUBLIC_PATHS,
        credential_finder=CredentialFinder(may_use_cookie=lambda _: True),
        stream_error_renderer=render_stream_error,
        error_renderer_of=choose_renderer,
    )


def _new_batch_runner(
    services: ModelsServices, call_routes: Mapping[str, CallRoute]
) -> BatchRunner:
    routes = {f"{_PREFIX}{path}": route for path, route in call_routes.items()}
    native_batches = NativeBatches(
        services.native_batches,
        services.batch_lines,
        services.blobs,
        NativeLines(services.text_router, render_error),
        get_poll_seconds=lambda: services.batch_settings().poll_s,
        on_result=services.record_batch_line,
    )
    return BatchRunner(
        batches=services.batches,
        lines=services.batch_lines,
        files=services.files,
        blobs=services.blobs,
        caller=BatchLineCaller(routes, services.meter, services.ledger),
        get_window=lambda: services.batch_settings().window,
        on_result=services.record_batch_line,
        native=native_batches,
    )


def _new_call_routes(text_router: Router, job_submitter: JobSubmitter) -> dict[str, CallRoute]:
    """Return the routes of model calls, by path below ``/v1``."""
    return {
        "/completions": CallRoute(OpenAICompletionsCodec(), text_router, job_submitter),
        "/embeddings": CallRoute(OpenAIEmbeddingsCodec(), text_router, job_submitter),
        "/messages": CallRoute(AnthropicCodec(), text_router, job_submitter),
        "/ollama/api/chat": OllamaRoute(OllamaChatCodec(), text_router, job_submitter),
        "/ollama/api/generate": OllamaRoute(OllamaGenerateCodec(), text_router, job_submitter),
        "/ollama/api/embed": OllamaRoute(OllamaEmbedCodec(), text_router, job_submitter),
        "/ollama/api/embeddings": CallRoute(OllamaEmbeddingsCodec(), text_router, job_submitter),
    }


def _may_have_large_body(scope: Scope) -> bool:
    """Return True if the request uploads a file or a batch, whose body is received to disk."""
    return scope["method"] == "POST" and scope["path"] in _LARGE_PATHS


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render ``error`` as the last event of a stream, in the protocol to which ``path`` belongs.

    Returns:
        None if ``media_type`` is not the media type of the protocol's streams.
    """
    relative_path = path.removeprefix(_PREFIX)
    names = {"/ollama": "ollama", "/messages": "anthropic", "/responses": "responses"}
    name = next((names[prefix] for prefix in names if relative_path.startswith(prefix)), "openai")
    codec = _CODECS[name]
    if media_type != codec.stream_content_type.partition(b";")[0].decode():
        return None
    return codec.render_error_event(error, request_id)


class _HotPathRouter:
    """Routes model calls to their handlers, and all other requests to FastAPI."""

    def __init__(self, call_routes: Mapping[str, ASGIApp], fastapi: ASGIApp) -> None:
        self._calls = {f"{_PREFIX}{path}": route for path, route in call_routes.items()}
        self._fastapi = fastapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self._calls.get(scope["path"])
            if route is not None:
                await route(scope, receive, send)
                return
        await self._fastapi(
            {**scope, "root_path": scope.get("root_path") or _PREFIX}, receive, send
        )
