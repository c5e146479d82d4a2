"""Defines the proxy's routes, and the route table that finds the route of a request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from moyin.domain.limits import Limit


class BalancingPolicy(StrEnum):
    """The policy that distributes requests over the upstreams of a route."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED = "weighted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """A server of a route's service; a path in ``url`` is prepended to every request's path."""

    url: str
    weight: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Limits in seconds for connecting, for the response headers, and between parts of the body."""

    connect: float = 2.0
    first_byte: float = 60.0
    idle: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """The active check of upstreams: GET ``path`` must return a status below 400.

    Attributes:
        interval: the seconds between two checks.
        timeout: the seconds after which a check without a response has failed.
        rise: the number of successes in a row after which an upstream that was down is up.
        fall: the number of failures in a row after which an upstream is down.
    """

    path: str
    interval: float = 5.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRewrite:
    """Replaces the first match of ``pattern`` in a path by ``replacement``, like ``re.sub``."""

    pattern: re.Pattern[str]
    replacement: str

    def __call__(self, path: str) -> str:
        """Return the rewritten path."""
        return self.pattern.sub(self.replacement, path, count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A service behind the gateway, which serves exact ``paths`` or all paths below ``prefix``.

    Attributes:
        hosts: the host names that the route matches, in lower case; every host if empty.
        strip_prefix: True to remove the prefix from the path that upstreams receive.
        proxy_redirect: True to add the removed prefix to redirects. False if the upstreams read
            ``x-forwarded-prefix`` and add the prefix themselves.
        sticky: the name of a header by whose value clients are tied to one upstream.
        retries: the maximum number of retries of a safe request on other upstreams.
        scopes: the scopes that every caller needs.
        limit: the request limit of each tenant.
        max_concurrent: the maximum number of open requests of all tenants in a gateway replica.
        respond_async: True to turn every request into a job.
        pass_credentials: True to forward the caller's key, which only Moyin's own apps may get.
    """

    name: str
    upstreams: tuple[Upstream, ...]
    hosts: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()
    prefix: str | None = None
    strip_prefix: bool = True
    proxy_redirect: bool = True
    rewrite: PathRewrite | None = None
    balance: BalancingPolicy = BalancingPolicy.ROUND_ROBIN
    sticky: str | None = None
    retries: int = 1
    timeouts: Timeouts = Timeouts()
    health: HealthCheck | None = None
    scopes: frozenset[str] = frozenset()
    limit: Limit | None = None
    max_concurrent: int | None = None
    respond_async: bool = False
    pass_credentials: bool = False


class RouteTable:
    """Finds the route of a request.

    Routes with ``hosts`` are tried before the others. In both groups, exact paths come before
    prefixes, and longer prefixes before shorter ones.

    Raises:
        ValueError: two routes have the same name, or match the same host and path.
    """

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str | None, dict[str, Route]] = {}
        prefixes: dict[str | None, dict[str, Route]] = {}
        route_names: set[str] = set()
        for route in self.routes:
            if route.name in route_names:
                raise ValueError(f"two routes are named {route.name!r}: names must be unique")
            route_names.add(route.name)
            for host in route.hosts or {None}:
                for path in route.paths:
                    _add_route(self._exact.setdefault(host, {}), path, route)
                if route.prefix is not None:
                    _add_route(prefixes.setdefault(host, {}), route.prefix.rstrip("/"), route)
        self._prefixes = {
            host: sorted(routes_by_prefix.items(), key=lambda item: -len(item[0]))
            for host, routes_by_prefix in prefixes.items()
        }

    def match(self, host: str, path: str) -> Route | None:
        """Return the route for a ``Host`` header and a decoded path, or None if none matches."""
        for key in (normalize_host(host), None):
            exact_routes = self._exact.get(key)
            if exact_routes is not None and path in exact_routes:
                return exact_routes[path]
            for prefix, route in self._prefixes.get(key, ()):
                if path.startswith(prefix) and (path[len(prefix) :][:1] in ("", "/")):
                    return route
        return None


def normalize_host(host: str) -> str:
    """Return a ``Host`` header in lower case and without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _add_route(routes: dict[str, Route], path: str, route: Route) -> None:
    if path in routes:
        raise ValueError(
            f"routes {routes[path].name!r} and {route.name!r} both match {path or '/'}: change one"
        )
    routes[path] = route
