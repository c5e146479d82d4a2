"""Defines routes and the route table, which finds a request's route by host and path."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from moyin.domain.limits import Limit

__all__ = ["Balance", "HealthCheck", "Rewrite", "Route", "RouteTable", "Timeouts", "Upstream"]


class Balance(StrEnum):
    """Names the policies that spread requests over a route's upstreams."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED = "weighted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """Describes one server: ``url`` may end in a path that is put before every request's path."""

    url: str
    weight: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Holds timeouts in seconds: to connect, to the response headers, between parts of the body."""

    connect: float = 2.0
    first_byte: float = 60.0
    idle: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """Describes the active check of upstreams: GET ``path``, healthy with a status below 400.

    Attributes:
        interval: seconds between checks.
        rise, fall: successes in a row that mark an upstream as up, failures that mark it as down.
    """

    path: str
    interval: float = 5.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """Replaces the first match of ``pattern`` in the path, as ``re.sub`` does."""

    pattern: re.Pattern[str]
    to: str

    def __call__(self, path: str) -> str:
        """Return the rewritten path."""
        return self.pattern.sub(self.to, path, count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Describes one service behind the gateway: exact ``paths`` or everything below ``prefix``.

    Attributes:
        hosts: the hosts it matches, in lower case and without port; empty: every host.
        strip_prefix: remove the prefix from the path that upstreams receive.
        proxy_redirect: put the removed prefix back into redirects; False: the upstreams do so
            themselves, because they read ``x-forwarded-prefix``.
        sticky: a header; requests with the same value go to the same upstream.
        retries: the number of further upstreams that a safe request may try.
        scopes: scopes of which the caller needs all.
        limit: the limit of each tenant.
        concurrent: the limit of concurrent requests of all tenants in one gateway replica.
        respond_async: turn every call into a job.
        pass_credentials: forward the caller's key; only for Moyin's own apps, which verify it.
    """

    name: str
    upstreams: tuple[Upstream, ...]
    hosts: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()
    prefix: str | None = None
    strip_prefix: bool = True
    proxy_redirect: bool = True
    rewrite: Rewrite | None = None
    balance: Balance = Balance.ROUND_ROBIN
    sticky: str | None = None
    retries: int = 1
    timeouts: Timeouts = Timeouts()
    health: HealthCheck | None = None
    scopes: frozenset[str] = frozenset()
    limit: Limit | None = None
    concurrent: int | None = None
    respond_async: bool = False
    pass_credentials: bool = False


class RouteTable:
    """Finds the route of a request: routes of its host first, exact paths before prefixes.

    Raises:
        ValueError: two routes share a name, or a host and path.
    """

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str | None, dict[str, Route]] = {}
        prefixes: dict[str | None, dict[str, Route]] = {}
        names: set[str] = set()
        for route in self.routes:
            if route.name in names:
                raise ValueError(f"two routes are named {route.name!r}: names must be unique")
            names.add(route.name)
            for host in route.hosts or {None}:
                for path in route.paths:
                    _add(self._exact.setdefault(host, {}), path, route)
                if route.prefix is not None:
                    _add(prefixes.setdefault(host, {}), route.prefix.rstrip("/"), route)
        self._prefixes = {
            host: sorted(by_prefix.items(), key=lambda item: -len(item[0]))
            for host, by_prefix in prefixes.items()
        }

    def match(self, host: str, path: str) -> Route | None:
        """Return the route of ``path`` (decoded) on ``host`` (as in the ``Host`` header)."""
        for key in (host_name(host), None):
            exact = self._exact.get(key)
            if exact is not None and path in exact:
                return exact[path]
            for prefix, route in self._prefixes.get(key, ()):
                if path.startswith(prefix) and (path[len(prefix) :][:1] in ("", "/")):
                    return route
        return None


def host_name(host: str) -> str:
    """Return the ``Host`` header without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _add(routes: dict[str, Route], path: str, route: Route) -> None:
    if path in routes:
        raise ValueError(
            f"routes {routes[path].name!r} and {route.name!r} both match {path or '/'}"
        )
    routes[path] = route
