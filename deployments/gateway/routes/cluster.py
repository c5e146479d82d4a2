"""Defines the routes below ``/cluster``, which show the cluster's state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.event_stream import EventStreamResponse
from deployments.gateway.cluster.bodies import (
    ClusterBody,
    ConfigChangesBody,
    DoctorBody,
    LinksBody,
    ProblemsBody,
    RoutesBody,
    TargetsBody,
)
from deployments.gateway.cluster.config_changes import CHANGES, build_changes
from deployments.gateway.cluster.feeds import ClusterFeeds, Included, Viewer
from deployments.gateway.cluster.metrics import MEDIA_TYPE, format_metrics, list_targets
from deployments.gateway.cluster.routes_view import build_routes
from deployments.gateway.cluster.snapshot import restrict_cluster
from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
from moyin.domain.identity import JOBS_READ, OPERATOR, ORG_ADMIN, TEXT, Identity
from moyin.proxy.engine import Proxy
from moyin.store.config_history import ConfigHistory

_RETRY = "retry: 2000\n\n"
_EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `cluster`, whose data is the body of `GET /cluster`, and those that "
        "are included.",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ClusterEvent"}}},
    }
}
_Include = Annotated[
    list[Included],
    Query(
        max_length=len(Included),
        description="Also send `jobs`, whose data is the body of `GET /jobs` with the numbers of all "
        "queued and running jobs of your tenant; `models`, `backends` or `routes`, whose data is the body "
        "of `GET /v1/models`, `GET /v1/backends` or `GET /cluster/routes`; or `usage`, whose data is that "
        "of `GET /v1/usage` for this month by day, without `budgets`: for operators of all tenants, for "
        "others of their own. Repeat the parameter for several. What your scopes do not allow is left "
        "out. The data is null while its source does not respond.",
    ),
]

_WithCluster = Annotated[
    bool, Query(alias="cluster", description="Whether to send `cluster` events.")
]


def new_cluster_routes(
    feeds: ClusterFeeds,
    admission: GraphAdmission,
    proxy: Proxy,
    config: ReloadableConfig[GatewayConfig],
    history: ConfigHistory,
    links: LinksBody,
) -> APIRouter:
    """Return the routes that show the state of the cluster."""
    router = APIRouter(tags=["cluster"])

    async def restrict_for(cluster: ClusterBody, caller: Identity) -> ClusterBody:
        if caller.has_scope(OPERATOR):
            return cluster
        return restrict_cluster(cluster, (await admission.find_pools(caller)).names)

    @router.get("/cluster", name="cluster", summary="Show what runs on the cluster")
    async def show_cluster(request: Request) -> ClusterBody:
        """Return the render pools that you may use, and their load, at most two seconds old.

        Operators see all pools with their renderers, and the nodes with the shares of each GPU.
        """
        return await restrict_for(await feeds.cluster.get(), context(request.scope).caller)

    @router.get("/cluster/problems", name="problems", summary="Show what is wrong now")
    async def show_problems() -> ProblemsBody:
        """Return the present problems in words, the oldest first, for operators."""
        return ProblemsBody(problems=(await feeds.cluster.get()).problems or [])

    @router.get("/cluster/routes", name="routes", summary="Show the proxy's routes and versions")
    async def show_routes() -> RoutesBody:
        """Return the proxy's routes, the apps' status, package versions and the configuration.

        For operators. Each replica of the gateway measures the health, breakers and load of the
        routes itself; the response has the values of the replica that responds.
        """
        return build_routes(proxy.pools, config, (await feeds.cluster.get()).applications or {})

    @router.get("/cluster/links", name="links", summary="Show where other web interfaces are")
    async def show_links() -> LinksBody:
        """Return the addresses of Temporal's web interface and Ray's dashboard, for operators.

        The gateway does not forward to them. Loopback addresses open on the gateway's machine only.
        """
        return links

    @router.get("/cluster/doctor", name="doctor", summary="Check the gateway's machine")
    async def show_doctor() -> DoctorBody:
        """Return what `moyin doctor` finds on the machine of the responding replica, for operators.

        Nothing is changed. The checks run at most once a minute for all callers.
        """
        return await feeds.doctor.get()

    @router.get(
        "/cluster/metrics",
        name="metrics",
        summary="Read the cluster's state for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def show_metrics() -> Response:
        """Return problems, render pools, GPUs and intake sources in Prometheus's text format.

        Needs the scope `metrics`. The metrics of requests, models and jobs are served by each node:
        `GET /cluster/metrics/targets` returns their addresses.
        """
        return Response(format_metrics(await feeds.cluster.get()), media_type=MEDIA_TYPE)

    @router.get(
        "/cluster/metrics/targets",
        name="metrics_targets",
        summary="List the nodes that Prometheus shall read",
    )
    async def show_metrics_targets() -> list[TargetsBody]:
        """Return where each node serves metrics, for Prometheus's `http_sd_configs`.

        Needs the scope `metrics`. The list follows the nodes that join and leave the cluster.
        """
        return list_targets(await feeds.cluster.get())

    @router.get(
        "/cluster/config-changes",
        name="config_changes",
        summary="Show the last changes of the configuration",
    )
    async def show_config_changes() -> ConfigChangesBody:
        """Return what changed in each of the last twenty configurations of the gateway."""
        return build_changes(await history.list_newest(CHANGES + 1))

    router.include_router(_new_event_routes(feeds, admission))
    return router


def _new_event_routes(feeds: ClusterFeeds, admission: GraphAdmission) -> APIRouter:
    """Return the route of the event stream."""
    router = APIRouter()

    @router.get(
        "/cluster/events",
        name="cluster_events",
        summary="Follow what runs on the cluster",
        response_class=StreamingResponse,
        responses=_EVENT_RESPONSES,
    )
    async def follow_cluster(
        request: Request,
        include: _Include = [],  # noqa: B006
        with_cluster: _WithCluster = True,
    ) -> Response:
        """Send the body of `GET /cluster` now and after each change, at most every two seconds."""
        caller = context(request.scope).caller
        is_operator = caller.has_scope(OPERATOR)
        included_parts = _select_allowed(request, include)
        viewer = Viewer(owner=caller.owner, is_operator=is_operator)

        async def find_pools() -> Sequence[str] | None:
            return None if is_operator else (await admission.find_pools(caller)).names

        async def format_events() -> AsyncGenerator[str, None]:
            prefix = _RETRY
            async with aclosing(
                feeds.follow(viewer, included_parts, find_pools if with_cluster else None)
            ) as changes:
                async for change in changes:
                    if change is None:
                        yield ": still here\n\n"
                        continue
                    name, value = change
                    yield f"{prefix}event: {name}\ndata: {value or 'null'}\n\n"
                    prefix = ""

        return EventStreamResponse(format_events())

    return router


def _select_allowed(request: Request, include: Sequence[Included]) -> list[Included]:
    """Return the requested parts of the stream that the caller's scopes permit.

    The scopes `operator`, `org:admin` and `text` of the caller are required from now on, so that
    the stream ends when the caller loses one of them.
    """
    request_context = context(request.scope)
    caller = request_context.caller
    for scope in (OPERATOR, ORG_ADMIN, TEXT):
        if caller.has_scope(scope):
            # Checked again while the stream lasts.
            request_context.require(scope)
    is_allowed = {
        Included.BACKENDS: caller.has_scope(TEXT)
        and (caller.has_scope(OPERATOR) or caller.has_scope(ORG_ADMIN)),
        Included.USAGE: caller.has_scope(TEXT),
        Included.MODELS: caller.has_scope(TEXT),
        Included.JOBS: caller.has_scope(JOBS_READ),
        Included.ROUTES: caller.has_scope(OPERATOR),
    }
    return [name for name in Included if name in include and is_allowed[name]]
