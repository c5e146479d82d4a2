"""Builds the gateway's ASGI app from its services, without Ray Serve."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from deployments.errors import find_app_prefix, render_error, render_stream_error
from deployments.gateway.cluster.bodies import LinksBody
from deployments.gateway.cluster.feeds import ClusterFeeds
from deployments.gateway.config import GatewayConfig
from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.openapi import build_document
from deployments.gateway.routes import (
    archives,
    artifacts,
    cluster,
    console,
    graphs,
    job_events,
    jobs,
)
from deployments.gateway.routes.comfy_api import (
    assets_v2,
    files,
    frontend,
    jobs_v2,
    prompts,
    server_info,
    settings,
    userdata,
    websocket,
)  # fmt: skip
from deployments.health import ServiceCheck, new_health_routes
from deployments.ingress import new_fastapi
from deployments.replicas import ReloadableConfig
from deployments.swagger import DOCS_PATHS
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.access.gatekeeper.credential_finder import CredentialFinder
from moyin.access.gatekeeper.identity import Authenticator
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import Observer
from moyin.access.gatekeeper.replica_memory import MAX_IN_PROGRESS
from moyin.access.gatekeeper.tokens import SIGNED_FILES_PREFIX
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.graph_conversion import GraphConverter
from moyin.comfy_api.jobs_v2 import ComfyJobs
from moyin.comfy_api.notifier import PromptNotifiers
from moyin.comfy_api.prompts import ComfyPrompts
from moyin.comfy_api.protocol.paths import PAGE_PATH, is_comfyui_path, is_page_file, to_server_path
from moyin.console import CONSOLE_PATH, ConsoleFiles
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, METRICS, OPERATOR
from moyin.errors import ServiceUnavailable
from moyin.jobs.feed import JobFeed
from moyin.jobs.previews import PreviewFeed
from moyin.jobs.queue_places import QueuePlaceCache
from moyin.jobs.service import JobService
from moyin.proxy.engine import Proxy
from moyin.render.imaging import PictureConverter
from moyin.render.templates.catalog import TemplateCatalog
from moyin.store.artifacts import ArtifactStore
from moyin.store.assets import AssetStore
from moyin.store.blobs import BlobStore
from moyin.store.config_history import ConfigHistory
from moyin.store.jobs import JobStore
from moyin.store.sessions import SessionStore
from moyin.store.userdata import UserdataStore

_PUBLIC = frozenset(
    {"/", "/health", "/healthz", "/readyz", "/openapi.json", *(f"/{name}" for name in DOCS_PATHS)}
)
_OPERATOR_PATHS = frozenset(
    f"/cluster/{name}" for name in ("config-changes", "doctor", "links", "problems", "routes")
)
_METRICS_PATHS = frozenset({"/cluster/metrics", "/cluster/metrics/targets"})
# All other public paths begin with one of these, so most requests need only one comparison.
_PUBLIC_PREFIXES = (SIGNED_FILES_PREFIX, PAGE_PATH.rstrip("/"), CONSOLE_PATH.rstrip("/"))
# Pages can read these paths with an event token; their handlers check the token's job.
_EVENT_TOKEN_PATH = re.compile(r"/jobs/[^/]+/(?:events|ws|preview)|/artifacts/[^/]+")
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Seconds; HAProxy's own errors have the same value.
_RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class GatewayServices:
    """Holds the services that the routes and middleware of one replica call.

    Attributes:
        checks: the health checks of ``/readyz`` by name.
        retention: the minimum time for which a job is stored.
        lifespan: opens the services before the first request, and closes them after the last.
        meter: counts requests against callers' limits; None disables limits.
        max_in_progress: the most requests, and the most WebSockets, of a tenant at a time.
    """

    service: JobService
    jobs: JobStore
    feed: JobFeed
    previews: PreviewFeed
    places: QueuePlaceCache
    artifacts: ArtifactStore
    blobs: BlobStore
    pictures: PictureConverter
    prompts: ComfyPrompts
    files: ComfyFiles
    events: PromptNotifiers
    userdata: UserdataStore
    sessions: SessionStore
    admission: GraphAdmission
    frontend: FrontendFiles
    templates: TemplateCatalog
    proxy: Proxy
    config: ReloadableConfig[GatewayConfig]
    cluster: ClusterFeeds
    config_history: ConfigHistory
    links: LinksBody
    authenticator: Authenticator
    observer: Observer
    checks: Mapping[str, ServiceCheck]
    signing_key: bytes
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    retention: timedelta
    meter: RequestMeter | None = None
    max_in_progress: int = MAX_IN_PROGRESS
    console: ConsoleFiles = field(default_factory=ConsoleFiles)


def new_api(services: GatewayServices) -> FastAPI:
    """Return the app with all routes of the gateway, without the gatekeeper and the proxy."""
    app = new_fastapi(
        "Moyin gateway",
        errors=render_error,
        description="Durable jobs, their events and their files.",
        lifespan=lambda _: services.lifespan(),
    )
    app.add_exception_handler(ClientDisconnect, _handle_client_disconnect)
    _add_routes(app, services)
    app.openapi = lambda: build_document(  # type: ignore[method-assign]
        app, _is_public, _accepts_event_token
    )
    return app


def new_app(services: GatewayServices) -> Gatekeeper:
    """Return the ASGI app that serves the gateway, behind the gatekeeper."""
    app = new_api(services)
    proxy_or_app = ProxyOrApp(
        services.proxy,
        # The proxy itself checks the scopes that the route table requires.
        limited_proxy=AuthorizationMiddleware(
            services.proxy, scope_of=lambda _: None, meter=services.meter
        ),
        app=AuthorizationMiddleware(app, scope_of=_get_required_scope, meter=services.meter),
    )

    # The following rules apply only to the gateway's own routes, because the route table may use
    # the same path for a service.
    def is_public(scope: Scope) -> bool:
        path = scope["path"]
        # `ProxyOrApp` responds to these paths with status 503, also without a key.
        if find_app_prefix(path) is not None:
            return True
        return _is_public(path) and services.proxy.match(scope) is None

    def is_proxied(scope: Scope) -> bool:
        return services.proxy.match(scope) is not None

    def accepts_query_key(scope: Scope) -> bool:
        return is_comfyui_path(scope["path"]) and not is_proxied(scope)

    def accepts_cookie(scope: Scope) -> bool:
        # Services behind the proxy do not get the cookie, so a cookie must not grant access to
        # them.
        return not is_proxied(scope)

    def accepts_event_token(scope: Scope) -> bool:
        method, path = scope.get("method", "GET"), scope["path"]
        return _accepts_event_token(method, path) and not is_proxied(scope)

    return Gatekeeper(
        proxy_or_app, service="gateway", authenticator=services.authenticator, error_renderer=render_error,
        max_body_bytes=services.max_body_bytes, observer=services.observer, public_paths=is_public,
        max_in_progress=services.max_in_progress,
        credential_finder=CredentialFinder(
            may_use_query=accepts_query_key, is_proxied=is_proxied, may_use_cookie=accepts_cookie,
            may_use_event_token=accepts_event_token,
        ),
        stream_error_renderer=render_stream_error,
        # The proxy forwards bodies as they are.
        keeps_encoding=is_proxied,
    )  # fmt: skip


class ProxyOrApp:
    """Sends a request to the proxy if it matches the route table, and otherwise to ``app``.

    Args:
        limited_proxy: the proxy behind rate limiting. Requests to Moyin's other apps go to the
            proxy directly, because these apps count requests themselves.
        app: the gateway's own app.
    """

    def __init__(self, proxy: Proxy, *, limited_proxy: ASGIApp, app: ASGIApp) -> None:
        self._proxy = proxy
        self._limited_proxy = limited_proxy
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (app := find_app_prefix(scope["path"])) is not None:
            # HAProxy sends another app's path here only while it does not know that app.
            raise ServiceUnavailable(
                f"the app that serves /{app} is not running; try again",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        route = self._proxy.match(scope) if scope["type"] != "lifespan" else None
        if route is None:
            await self._app(_strip_page_prefix(scope), receive, send)
        elif route.pass_credentials:
            await self._proxy(scope, receive, send)
        else:
            await self._limited_proxy(scope, receive, send)


def _strip_page_prefix(scope: Scope) -> Scope:
    """Return the ASGI scope without the prefix ``/comfy`` that ComfyUI's page adds to paths.

    ``/comfy/api/queue`` becomes ``/api/queue``; other paths do not change.
    """
    path = to_server_path(scope["path"]) if scope["type"] != "lifespan" else None
    if path is None:
        return scope
    raw_path: bytes = scope.get("raw_path") or b""
    if raw_path.startswith(PAGE_PATH.encode()):
        return {**scope, "path": path, "raw_path": raw_path[len(PAGE_PATH) - 1 :]}
    return {**scope, "path": path}


def _add_routes(app: FastAPI, services: GatewayServices) -> None:
    admission, blobs, retention = services.admission, services.blobs, services.retention
    artifact_services = (services.artifacts, blobs, services.pictures, services.signing_key)
    # ComfyUI serves these routes at the root and under `/api`.
    comfyui_routers = (
        prompts.new_prompt_routes(services.prompts, services.admission),
        files.new_file_routes(services.files, blobs, services.pictures),
        websocket.new_websocket_routes(services.events, services.max_body_bytes),
        server_info.new_server_info_routes(admission, services.files, services.max_body_bytes),
        server_info.new_package_routes(admission),
        server_info.new_model_routes(admission),
        userdata.new_userdata_routes(services.userdata),
        settings.new_settings_routes(services.userdata),
    )
    renders = ComfyJobs(
        service=services.service, jobs=services.jobs, feed=services.feed, blobs=blobs
    )
    sessions = BrowserSessions(services.authenticator, services.sessions.revoke)
    for router in (
        new_health_routes(services.checks),
        jobs.new_job_routes(
            services.service,
            services.jobs,
            services.templates,
            services.signing_key,
            services.places,
        ),
        job_events.new_job_event_routes(
            services.jobs, services.feed, services.previews, services.signing_key
        ),
        cluster.new_cluster_routes(
            services.cluster,
            admission,
            services.proxy,
            services.config,
            services.config_history,
            services.links,
        ),
        artifacts.new_signed_link_routes(*artifact_services),
        artifacts.new_artifact_routes(*artifact_services, services.templates),
        archives.new_archive_routes(services.artifacts, services.jobs, blobs, services.signing_key),
        jobs_v2.new_job_v2_routes(renders, services.admission, retention),
        assets_v2.new_asset_v2_routes(AssetStore(services.artifacts), blobs, retention),
    ):
        app.include_router(router)
    for router in comfyui_routers:
        app.include_router(router)
        app.include_router(router, prefix="/api", include_in_schema=False)
    app.include_router(prompts.new_job_list_routes(services.prompts))
    app.include_router(jobs.new_template_routes(services.templates))
    app.include_router(
        graphs.new_graph_routes(
            GraphConverter(admission, services.files, services.service.work),
            admission,
        )
    )
    app.include_router(console.new_console_routes(services.console))
    app.include_router(frontend.new_session_routes(sessions))
    app.include_router(frontend.new_frontend_routes(sessions, services.frontend, admission))


def _get_required_scope(scope: Scope) -> str:
    """Return the right, such as ``jobs:read``, that a request to the gateway's own routes needs."""
    method, path = scope.get("method", "GET"), scope["path"]
    if path in _OPERATOR_PATHS:
        return OPERATOR
    if path in _METRICS_PATHS:
        return METRICS
    # These POST requests change nothing: a link to an archive gives access only to files that the
    # caller may read.
    if path in ("/artifacts/archive", "/graphs/convert"):
        return JOBS_READ
    # With the webhook secret, a caller can sign webhooks as the studio.
    if path == "/jobs/webhook-secret" or method not in _READING_METHODS:
        return JOBS_WRITE
    return JOBS_READ


def _accepts_event_token(method: str, path: str) -> bool:
    return method in _READING_METHODS and _EVENT_TOKEN_PATH.fullmatch(path) is not None


def _is_public(path: str) -> bool:
    if path not in _PUBLIC and not path.startswith(_PUBLIC_PREFIXES):
        return False
    return (
        path in _PUBLIC
        or path.startswith((SIGNED_FILES_PREFIX, CONSOLE_PATH))
        or path == CONSOLE_PATH.rstrip("/")
        or is_page_file(path)
    )


async def _handle_client_disconnect(request: Request, error: Exception) -> Response:
    """Return status 499 for the access log: the client disconnected while sending its body."""
    return Response(status_code=499)
