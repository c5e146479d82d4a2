"""The route table: where a request goes, by its host and path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from moyin.domain.limits import Limit

__all__ = ["Balance", "HealthCheck", "Rewrite", "Route", "RouteTable", "Timeouts", "Upstream"]


class Balance(StrEnum):
    """How requests are spread over a route's upstreams."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED = "weighted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """One server: ``url`` with scheme, host and, if any, a path that goes before every path."""

    url: str
    weight: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Seconds: to connect; from the request's end to the answer's head; of silence after it."""

    connect: float = 2.0
    first_byte: float = 60.0
    idle: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """GET ``path`` every ``interval`` seconds; 2xx and 3xx are health.

    Attributes:
        rise, fall: so many answers in a row bring an upstream back, or take it out.
    """

    path: str
    interval: float = 5.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """Replaces what ``pattern`` matches in the path, as ``re.sub`` does."""

    pattern: re.Pattern[str]
    to: str

    def __call__(self, path: str) -> str:
        return self.pattern.sub(self.to, path, count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One service behind the door. It matches exact ``paths`` or everything below ``prefix``.

    Attributes:
        hosts: only for these, lower case, without port; empty: for every host.
        strip_prefix: upstreams do not see the prefix.
        proxy_redirect: redirects get the prefix that was taken off; False: upstreams know it from
            ``x-forwarded-prefix`` and put it there themselves.
        sticky: requests with the same value in this header go to the same upstream.
        retries: further upstreams that a safe request may try.
        scopes: what a caller must all have.
        limit: for each tenant.
        concurrent: requests at a time through one gateway replica, of all tenants.
        respond_async: every call becomes a job.
        pass_credentials: upstreams see the caller's key; for apps behind this very door, which
            check it themselves.
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
    """Finds the route of a request: its host's own routes first, exact paths before prefixes.

    Raises:
        ValueError: two routes have a name, or a host and path, in common.
    """

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str | None, dict[str, Route]] = {}
        prefixes: dict[str | None, dict[str, Route]] = {}
        names: set[str] = set()
        for route in self.routes:
            if route.name in names:
                raise ValueError(f"two routes are called {route.name!r}")
            names.add(route.name)
            for host in route.hosts or {None}:
                for path in route.paths:
                    _add(self._exact.setdefault(host, {}), path, route)
                if route.prefix is not None:
                    _add(prefixes.setdefault(host, {}), route.prefix.rstrip("/"), route)
        self._prefixes = {
            host: sorted(found.items(), key=lambda item: -len(item[0]))
            for host, found in prefixes.items()
        }

    def match(self, host: str, path: str) -> Route | None:
        """The route of ``path`` (decoded) on ``host`` (as in the header)."""
        for key in (host_name(host), None):
            exact = self._exact.get(key)
            if exact is not None and path in exact:
                return exact[path]
            for prefix, route in self._prefixes.get(key, ()):
                if path.startswith(prefix) and (path[len(prefix) :][:1] in ("", "/")):
                    return route
        return None

    def on_some_host(self, path: str) -> bool:
        """Whether ``path`` may be a route's, whatever the host."""
        return any(self.match(host, path) is not None for host in self._hosts())

    def _hosts(self) -> Iterator[str]:
        yield ""
        yield from {host for route in self.routes for host in route.hosts}


def host_name(host: str) -> str:
    """The Host header without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _add(found: dict[str, Route], path: str, route: Route) -> None:
    if path in found:
        raise ValueError(
            f"routes {found[path].name!r} and {route.name!r} are both for {path or '/'}"
        )
    found[path] = route
