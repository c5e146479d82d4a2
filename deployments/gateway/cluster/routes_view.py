"""Builds the body of ``GET /cluster/routes``: the proxy's routes and the configuration in force."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from deployments.gateway.cluster.bodies import (
    ConfigBody,
    LinksBody,
    RouteBody,
    RoutesBody,
    UpstreamBody,
)
from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.proxy.pool import UpstreamPool
from moyin.settings import Settings

_PACKAGES = ("moyin", "ray", "temporalio")


def build_links(settings: Settings) -> LinksBody:
    """Return the configured addresses of Temporal's web interface and Ray's dashboard."""
    temporal = settings.temporal_ui_url
    namespace = quote(settings.temporal_namespace, safe="")
    return LinksBody(
        temporal=f"{temporal}/namespaces/{namespace}/workflows" if temporal else None,
        ray=settings.ray_dashboard_url or None,
    )


def read_versions() -> dict[str, str]:
    """Return the versions of Moyin, Ray and Temporal's SDK, whose updates operators track."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def build_routes(
    pools: Sequence[UpstreamPool],
    config: ReloadableConfig[GatewayConfig],
    applications: Mapping[str, str],
) -> RoutesBody:
    """Return the body of ``GET /cluster/routes``, with the routes in the configured order."""
    return RoutesBody(
        routes=[_build_route(pool) for pool in pools],
        applications=dict(applications),
        versions=read_versions(),
        config=ConfigBody(
            # The configuration should contain no secrets: URLs with passwords or queries are rejected.
            values=(config.current or GatewayConfig()).model_dump(mode="json", by_alias=True),
            applied_at=config.applied_at,
            is_newest_rejected=config.is_rejected,
        ),
    )


def _build_route(pool: UpstreamPool) -> RouteBody:
    route = pool.route
    return RouteBody(
        name=route.name,
        hosts=sorted(route.hosts),
        paths=sorted(route.paths),
        prefix=route.prefix,
        open_requests=pool.open_requests,
        max_open_requests=route.max_concurrent,
        upstreams=[
            UpstreamBody(
                url=member.upstream.url,
                weight=member.upstream.weight,
                is_up=member.is_up,
                breaker=member.breaker.state,
                open_requests=member.active,
            )
            for member in pool.members
        ],
    )
