"""Builds the body of ``GET /cluster/routes``: the proxy's routes and the configuration in force."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from deployments.gateway.cluster.bodies import ConfigBody, RouteBody, RoutesBody, UpstreamBody
from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.proxy.pool import UpstreamPool

_PACKAGES = ("moyin", "ray", "temporalio")


def build_routes(
    pools: Sequence[UpstreamPool],
    config: ReloadableConfig[GatewayConfig],
    applications: Mapping[str, str],
) -> RoutesBody:
    """Return the body of ``GET /cluster/routes``, with the routes in the configured order."""
    return RoutesBody(
        routes=[_build_route(pool) for pool in pools],
        applications=dict(applications),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        config=ConfigBody(
            # The configuration contains no secrets: URLs with passwords or queries are rejected.
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
