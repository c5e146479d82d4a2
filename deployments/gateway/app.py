"""The gateway's ASGI app, made of its parts; knows nothing of Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.requests import ClientDisconnect

from deployments.errors import app_of, render_error, render_stream_error
from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.proxy_or_app import ProxyOrApp
from deployments.gateway.routes.artifacts import artifact_routes
from deployments.gateway.routes.comfyui import comfyui_job_routes, comfyui_routes
from deployments.gateway.routes.comfyui_files import comfyui_file_routes
from deployments.gateway.routes.comfyui_socket import comfyui_socket
from deployments.gateway.routes.comfyui_v2 import render_job_routes
from deployments.gateway.routes.comfyui_v2_assets import asset_routes
from deployments.gateway.routes.events import event_routes
from deployments.gateway.routes.facts import fact_routes, model_routes, package_routes
from deployments.gateway.routes.health import Check, health_routes
from deployments.gateway.routes.jobs import job_routes
from deployments.gateway.routes.links import link_routes
from deployments.gateway.routes.page import page_routes, session_routes
from deployments.gateway.routes.settings import settings_routes
from deployments.gateway.routes.templates import template_routes
from deployments.gateway.routes.userdata import userdata_routes
from deployments.gateway.scopes import scope_of
from deployments.ingress import new_fastapi
from deployments.openapi import QUERY_KEY, document_security
from deployments.problems import document_problems
from deployments.swagger import DOCS
from moyin.access.gatekeeper import Authenticator, Gatekeeper
from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.access.gatekeeper.credentials import Credentials
from moyin.access.gatekeeper.limits import Meter
from moyin.access.gatekeeper.links import SIGNED_FILES_PREFIX
from moyin.access.gatekeeper.observation import Observer
from moyin.comfy_api import Farm
from moyin.comfy_api.admission import Admission
from moyin.comfy_api.jobs_v2 import ComfyJobs
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.paths import PAGE, inside, is_comfyui, is_page_file
from moyin.jobs.feed import JobFeed
from moyin.jobs.protocol import wire
from moyin.jobs.service import JobService
from moyin.proxy import Proxy
from moyin.render.imaging import PictureConverter
from moyin.render.templates.catalog import Catalog
from moyin.store.artifacts import ArtifactStore
from moyin.store.assets import Assets
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore
from moyin.store.userdata import UserdataStore

__all__ = ["GatewayParts", "new_app"]

_PUBLIC = frozenset(
    {"/", "/health", "/healthz", "/readyz", "/openapi.json", *(f"/{name}" for name in DOCS)}
)
# What other public paths begin with: most requests are told by one look that they are none.
_SOME_PUBLIC = (SIGNED_FILES_PREFIX, PAGE.rstrip("/"))
_REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True, kw_only=True)
class GatewayParts:
    """What the routes work with.

    Attributes:
        meter: counts for limits; None: nobody is limited here.
        checks: what `/readyz` asks, by name.
        retention: how long jobs are promised to be kept.
        lifespan: opens what must be open before the first request, and closes all of it.
    """

    service: JobService
    jobs: JobStore
    feed: JobFeed
    artifacts: ArtifactStore
    blobs: BlobStore
    pictures: PictureConverter
    farm: Farm
    userdata: UserdataStore
    facts: NodeInfoCache
    admission: Admission
    frontend: FrontendFiles
    templates: Catalog
    proxy: Proxy
    authenticator: Authenticator
    observer: Observer
    checks: Mapping[str, Check]
    signing_key: bytes
    max_body_bytes: int
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    retention: timedelta
    meter: Meter | None = None


def new_app(parts: GatewayParts) -> Gatekeeper:
    """The gateway behind its gatekeeper."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.lifespan():
            await parts.proxy.start()
            yield
            await parts.proxy.close()

    app = new_fastapi(
        "Moyin gateway",
        errors=render_error,
        description="Durable jobs, their events and their files.",
        lifespan=lifespan,
    )
    app.add_exception_handler(ClientDisconnect, _left)
    app.include_router(health_routes(parts.checks))
    app.include_router(job_routes(parts.service, parts.jobs, parts.templates, parts.signing_key))
    app.include_router(event_routes(parts.jobs, parts.feed))
    app.include_router(link_routes(parts.artifacts, parts.blobs, parts.signing_key))
    app.include_router(artifact_routes(parts.artifacts, parts.blobs))
    comfyui = (
        comfyui_routes(parts.farm.prompts),
        comfyui_file_routes(parts.farm.files, parts.blobs, parts.pictures),
        comfyui_socket(parts.farm.events, parts.max_body_bytes),
        fact_routes(parts.facts, parts.admission, parts.farm.files, parts.max_body_bytes),
        package_routes(parts.facts),
        model_routes(parts.facts),
        userdata_routes(parts.userdata),
        settings_routes(parts.userdata),
    )
    renders = ComfyJobs(service=parts.service, jobs=parts.jobs, feed=parts.feed, blobs=parts.blobs)
    app.include_router(render_job_routes(renders, parts.retention))
    app.include_router(asset_routes(Assets(parts.artifacts), parts.blobs, parts.retention))
    for router in comfyui:
        app.include_router(router)
        app.include_router(router, prefix="/api", include_in_schema=False)
    app.include_router(comfyui_job_routes(parts.farm.prompts))
    app.include_router(template_routes(parts.templates))
    sessions = BrowserSessions(parts.authenticator, PAGE)
    app.include_router(session_routes(sessions))
    app.include_router(page_routes(sessions, parts.frontend, parts.facts))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    front = ProxyOrApp(
        parts.proxy,
        # Routes name the scopes that they need; the proxy asks for them.
        guarded=AuthorizationMiddleware(parts.proxy, scope_of=lambda _: None, meter=parts.meter),
        rest=AuthorizationMiddleware(app, scope_of=scope_of, meter=parts.meter),
    )

    # What the route table sends elsewhere is for its service to give away, not for us.
    def is_public(scope: Scope) -> bool:
        path = scope["path"]
        # `ProxyOrApp` answers that the app is not running, to everybody.
        if app_of(path) is not None:
            return True
        return _is_public(path) and parts.proxy.match(scope) is None

    def from_query(scope: Scope) -> bool:
        return is_comfyui(scope["path"]) and parts.proxy.match(scope) is None

    def from_cookie(scope: Scope) -> bool:
        return inside(scope["path"]) is not None and parts.proxy.match(scope) is None

    return Gatekeeper(
        front,
        service="gateway",
        authenticator=parts.authenticator,
        errors=render_error,
        max_body_bytes=parts.max_body_bytes,
        observer=parts.observer,
        public=is_public,
        credentials=Credentials(query=from_query, cookie=from_cookie),
        stream_errors=render_stream_error,
    )


def _is_public(path: str) -> bool:
    if path not in _PUBLIC and not path.startswith(_SOME_PUBLIC):
        return False
    return path in _PUBLIC or path.startswith(SIGNED_FILES_PREFIX) or is_page_file(path)


async def _left(request: Request, error: Exception) -> Response:
    """The client went away while it sent its body: nobody reads this, the access log does."""
    return Response(status_code=499)


def _has_comfyui_errors(path: str) -> bool:
    return is_comfyui(path) and not path.startswith("/api/v2/")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description plus the job request, which is parsed by hand for its errors."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        request = wire.JOB_REQUEST.json_schema(ref_template=_REFERENCE)
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(request.pop("$defs"))
        schemas["JobRequest"] = request
        document_problems(described, _has_comfyui_errors)
        document_security(described, _is_public, lambda path: QUERY_KEY if is_comfyui(path) else {})
        app.openapi_schema = described
    return app.openapi_schema
