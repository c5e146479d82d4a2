"""Assembles the gateway's ASGI app from its parts, without Ray Serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.requests import ClientDisconnect

from deployments.errors import app_of, render_error, render_stream_error
from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.proxy_or_app import ProxyOrApp
from deployments.gateway.routes.artifacts import artifact_routes, link_routes
from deployments.gateway.routes.comfy_api.assets_v2 import asset_v2_routes
from deployments.gateway.routes.comfy_api.files import file_routes
from deployments.gateway.routes.comfy_api.frontend import frontend_routes, session_routes
from deployments.gateway.routes.comfy_api.jobs_v2 import job_v2_routes
from deployments.gateway.routes.comfy_api.prompts import job_list_routes, prompt_routes
from deployments.gateway.routes.comfy_api.server_info import (
    model_routes,
    package_routes,
    server_info_routes,
)
from deployments.gateway.routes.comfy_api.settings import settings_routes
from deployments.gateway.routes.comfy_api.userdata import userdata_routes
from deployments.gateway.routes.comfy_api.websocket import websocket_routes
from deployments.gateway.routes.job_events import job_event_routes
from deployments.gateway.routes.jobs import job_routes
from deployments.gateway.routes.templates import template_routes
from deployments.health import Check, health_routes
from deployments.ingress import new_fastapi
from deployments.openapi import QUERY_KEY, document_security
from deployments.problems import document_problems
from deployments.swagger import DOCS
from moyin.access.gatekeeper import Authenticator, Gatekeeper
from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.access.gatekeeper.credential_finder import CredentialFinder
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.observation import Observer
from moyin.access.gatekeeper.tokens import SIGNED_FILES_PREFIX
from moyin.comfy_api import Farm
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.jobs_v2 import ComfyJobs
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.paths import PAGE, is_comfyui, is_page_file, server_path
from moyin.domain.identity import JOBS_READ, JOBS_WRITE
from moyin.jobs.feed import JobFeed
from moyin.jobs.protocol import wire
from moyin.jobs.service import JobService
from moyin.proxy import Proxy
from moyin.render.imaging import PictureConverter
from moyin.render.templates.catalog import TemplateCatalog
from moyin.store.artifacts import ArtifactStore
from moyin.store.assets import AssetStore
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore
from moyin.store.userdata import UserdataStore

__all__ = ["GatewayParts", "new_app"]

_PUBLIC = frozenset(
    {"/", "/health", "/healthz", "/readyz", "/openapi.json", *(f"/{name}" for name in DOCS)}
)
# Prefixes of all other public paths, so that most requests need only one comparison.
_PUBLIC_PREFIXES = (SIGNED_FILES_PREFIX, PAGE.rstrip("/"))
_SCHEMA_REFERENCE = "#/components/schemas/{model}"
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class GatewayParts:
    """Holds the objects that the routes and middleware work with.

    Attributes:
        meter: enforces limits; None: there are no limits.
        checks: the checks of `/readyz`, by name.
        retention: how long jobs are stored at least.
        lifespan: opens the parts before the first request, and closes them after the last.
    """

    service: JobService
    jobs: JobStore
    feed: JobFeed
    artifacts: ArtifactStore
    blobs: BlobStore
    pictures: PictureConverter
    farm: Farm
    userdata: UserdataStore
    node_info: NodeInfoCache
    admission: GraphAdmission
    frontend: FrontendFiles
    templates: TemplateCatalog
    proxy: Proxy
    authenticator: Authenticator
    observer: Observer
    checks: Mapping[str, Check]
    signing_key: bytes
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    retention: timedelta
    meter: RequestMeter | None = None


def new_app(parts: GatewayParts) -> Gatekeeper:
    """Return the gateway's app behind the gatekeeper."""
    app = new_fastapi(
        "Moyin gateway",
        errors=render_error,
        description="Durable jobs, their events and their files.",
        lifespan=lambda _: parts.lifespan(),
    )
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    _add_routes(app, parts)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    proxy_or_app = ProxyOrApp(
        parts.proxy,
        # The proxy itself checks the scopes that the route table names.
        guarded=AuthorizationMiddleware(parts.proxy, scope_of=lambda _: None, meter=parts.meter),
        app=AuthorizationMiddleware(app, scope_of=_required_scope, meter=parts.meter),
    )

    # A path that the route table sends to another service follows none of the gateway's exceptions.
    def is_public(scope: Scope) -> bool:
        path = scope["path"]
        # `ProxyOrApp` answers these with 503, without a key.
        if app_of(path) is not None:
            return True
        return _is_public(path) and parts.proxy.match(scope) is None

    def accepts_query_key(scope: Scope) -> bool:
        return is_comfyui(scope["path"]) and parts.proxy.match(scope) is None

    def accepts_cookie(scope: Scope) -> bool:
        return server_path(scope["path"]) is not None and parts.proxy.match(scope) is None

    return Gatekeeper(
        proxy_or_app,
        service="gateway",
        authenticator=parts.authenticator,
        errors=render_error,
        max_body_bytes=parts.max_body_bytes,
        observer=parts.observer,
        public=is_public,
        credentials=CredentialFinder(query=accepts_query_key, cookie=accepts_cookie),
        stream_errors=render_stream_error,
    )


def _add_routes(app: FastAPI, parts: GatewayParts) -> None:
    app.include_router(health_routes(parts.checks))
    app.include_router(job_routes(parts.service, parts.jobs, parts.templates, parts.signing_key))
    app.include_router(job_event_routes(parts.jobs, parts.feed))
    app.include_router(link_routes(parts.artifacts, parts.blobs, parts.signing_key))
    app.include_router(artifact_routes(parts.artifacts, parts.blobs))
    # ComfyUI serves each of these routes at the root and under `/api`.
    comfyui = (
        prompt_routes(parts.farm.prompts),
        file_routes(parts.farm.files, parts.blobs, parts.pictures),
        websocket_routes(parts.farm.events, parts.max_body_bytes),
        server_info_routes(
            parts.node_info, parts.admission, parts.farm.files, parts.max_body_bytes
        ),
        package_routes(parts.node_info),
        model_routes(parts.node_info),
        userdata_routes(parts.userdata),
        settings_routes(parts.userdata),
    )
    renders = ComfyJobs(service=parts.service, jobs=parts.jobs, feed=parts.feed, blobs=parts.blobs)
    app.include_router(job_v2_routes(renders, parts.retention))
    app.include_router(asset_v2_routes(AssetStore(parts.artifacts), parts.blobs, parts.retention))
    for router in comfyui:
        app.include_router(router)
        app.include_router(router, prefix="/api", include_in_schema=False)
    app.include_router(job_list_routes(parts.farm.prompts))
    app.include_router(template_routes(parts.templates))
    sessions = BrowserSessions(parts.authenticator, PAGE)
    app.include_router(session_routes(sessions))
    app.include_router(frontend_routes(sessions, parts.frontend, parts.node_info))


def _required_scope(scope: Scope) -> str:
    """Return the scope that a request to the gateway's own routes needs."""
    method, path = scope.get("method", "GET"), scope["path"]
    # The secret allows its holder to sign webhooks as the studio, so reading it needs more.
    if path == "/jobs/webhook-secret" or method not in _READING_METHODS:
        return JOBS_WRITE
    return JOBS_READ


def _is_public(path: str) -> bool:
    if path not in _PUBLIC and not path.startswith(_PUBLIC_PREFIXES):
        return False
    return path in _PUBLIC or path.startswith(SIGNED_FILES_PREFIX) or is_page_file(path)


async def _client_disconnected(request: Request, error: Exception) -> Response:
    """Return status 499 for the access log; the client has disconnected while sending its body."""
    return Response(status_code=499)


def _has_comfyui_errors(path: str) -> bool:
    return is_comfyui(path) and not path.startswith("/api/v2/")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document with the schema of job requests, which FastAPI does not parse."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        request = wire.JOB_REQUEST.json_schema(ref_template=_SCHEMA_REFERENCE)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(request.pop("$defs"))
        schemas["JobRequest"] = request
        document_problems(document, _has_comfyui_errors)
        document_security(document, _is_public, lambda path: QUERY_KEY if is_comfyui(path) else {})
        app.openapi_schema = document
    return app.openapi_schema
