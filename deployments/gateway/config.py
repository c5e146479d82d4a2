"""Defines the gateway's ``user_config``, the route table, which running replicas can reload.

Upstream addresses come only from this configuration, so no request can choose one.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from moyin.comfy_api.protocol.paths import API_FIRST_SEGMENTS
from moyin.domain.limits import Limit
from moyin.proxy.route import (
    BalancingPolicy,
    HealthCheck,
    PathRewrite,
    Route,
    RouteTable,
    Timeouts,
    Upstream,
)

# In an upstream's URL, `door` means the gateway's own address, for requests to Moyin's other apps.
_GATEWAY = "door"
_NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"
_HOST = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_PATH = r"^/[!-~]*$"
_SCOPE = r"^[a-z][a-z0-9:._-]{0,63}$"
# First path segments of the gateway's own routes, including ComfyUI's API. Only routes with `hosts`
# may use them, except for exact paths below /api, which every route may use.
_RESERVED_SEGMENTS = frozenset(
    {
        "accounts", "api", "artifacts", "cluster", "comfy", "console", "docs", "healthz", "jobs", "openapi.json",
        "readyz", "templates", "v1", *API_FIRST_SEGMENTS,
    }
)  # fmt: skip
# HAProxy sends paths with these first segments to Moyin's other apps, for every host.
_OTHER_APPS = frozenset({"accounts", "v1"})
_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Path = Annotated[str, Field(pattern=_PATH, max_length=1024)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamConfig(_StrictModel):
    """Configures a server of a service. A path in ``url`` is prepended to every request's path."""

    url: str
    weight: int = Field(1, ge=1, le=1_000)

    @field_validator("url")
    @classmethod
    def _validate_url(cls, url: str) -> str:
        if _is_gateway_url(url):
            return url.rstrip("/")
        url_parts = urlsplit(url)
        if url_parts.scheme not in ("http", "https") or not url_parts.hostname:
            raise ValueError("url must be an http(s) URL, or 'door/…' for one of Moyin's own apps")
        if url_parts.username or url_parts.password or url_parts.query or url_parts.fragment:
            raise ValueError("url must not contain a user, password, query or fragment")
        _ = url_parts.port  # Reading `port` raises ValueError if it is invalid.
        return url.rstrip("/")

    def to_upstream(self, gateway_url: str) -> Upstream:
        """Return the upstream for the route table.

        A URL that begins with ``door`` leads to one of Moyin's own apps; ``gateway_url`` replaces
        this word.
        """
        url = self.url
        if _is_gateway_url(url):
            url = gateway_url.rstrip("/") + url.removeprefix(_GATEWAY)
        return Upstream(url=url, weight=self.weight)


class TimeoutsConfig(_StrictModel):
    """Configures the timeouts of a route in seconds.

    Attributes:
        connect: time to connect to the upstream.
        first_byte: time until the upstream sends the headers of its response.
        idle: time between two parts of the response's body.
    """

    connect: _Seconds = 2.0
    first_byte: _Seconds = 60.0
    idle: _Seconds = 300.0


class HealthConfig(_StrictModel):
    """Configures the health check of upstreams: GET ``path`` must return a status below 400.

    Attributes:
        interval, timeout: seconds between two checks, and time limit of one check in seconds.
        rise, fall: successes or failures in a row after which an upstream counts as up or down.
    """

    path: _Path
    interval: _Seconds = 5.0
    timeout: _Seconds = 2.0
    rise: int = Field(2, ge=1, le=100)
    fall: int = Field(2, ge=1, le=100)


class RewriteConfig(_StrictModel):
    """Configures how a route rewrites paths.

    Attributes:
        match: regular expression; what it matches in a path is replaced.
        to: replacement, which may contain groups of ``match``, such as ``\\1``.
    """

    match: str = Field(max_length=256)
    to: str = Field(max_length=256)

    @model_validator(mode="after")
    def _validate_expression(self) -> RewriteConfig:
        try:
            self.to_rewrite()("/")
        except (re.error, IndexError) as error:
            raise ValueError(
                f"match must be a regular expression, and to a replacement for it: {error}"
            ) from None
        return self

    def to_rewrite(self) -> PathRewrite:
        """Return the rewrite for the route table."""
        return PathRewrite(pattern=re.compile(self.match), replacement=self.to)


class LimitsConfig(_StrictModel):
    """Configures the limits on requests to a route.

    Attributes:
        requests_per_minute, concurrent_requests: limits on the requests of one tenant.
        concurrent: limit on the concurrent requests of all tenants in one replica.
    """

    requests_per_minute: int | None = Field(None, ge=1)
    concurrent_requests: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)


class RouteConfig(_StrictModel):
    """Configures the route to one service; docs/proxy.md explains the fields.

    If ``async`` is true, every request becomes a job; otherwise only requests with the header
    ``Prefer: respond-async`` do. Paths below ``/v1`` and ``/accounts`` belong to Moyin's other
    apps, even for routes with ``hosts``.
    """

    name: str = Field(pattern=_NAME)
    hosts: tuple[Annotated[str, Field(pattern=_HOST)], ...] = ()
    paths: tuple[_Path, ...] = ()
    prefix: _Path | None = None
    upstreams: tuple[UpstreamConfig, ...] = Field(min_length=1, max_length=256)
    strip_prefix: bool = True
    proxy_redirect: bool = True
    rewrite: RewriteConfig | None = None
    balance: BalancingPolicy = BalancingPolicy.ROUND_ROBIN
    sticky: str | None = Field(None, pattern=_HEADER)
    retries: int = Field(1, ge=0, le=10)
    timeouts: TimeoutsConfig = TimeoutsConfig()
    health: HealthConfig | None = None
    scopes: frozenset[Annotated[str, Field(pattern=_SCOPE)]] = frozenset()
    limits: LimitsConfig = LimitsConfig()
    async_: bool = Field(False, alias="async")
    pass_credentials: bool = False

    @field_validator("upstreams", mode="before")
    @classmethod
    def _expand_plain_urls(cls, value: Any) -> Any:
        """Return a list of upstreams in which each plain URL is an upstream of weight 1."""
        if isinstance(value, list | tuple):
            return [{"url": item} if isinstance(item, str) else item for item in value]
        return value

    @field_serializer("scopes")
    def _sort_scopes(self, scopes: frozenset[str]) -> list[str]:
        """Sort the scopes, because the order of a set differs from process to process."""
        return sorted(scopes)

    @model_validator(mode="after")
    def _check_route(self) -> RouteConfig:
        if self.prefix is None and not self.paths:
            raise ValueError("the route must have prefix or paths")
        if self.prefix is not None:
            first_segment = _get_first_segment(self.prefix)
            if first_segment in _OTHER_APPS:
                raise ValueError(
                    f"prefix {self.prefix} is reserved for another of Moyin's apps: choose another"
                )
            if not self.hosts and (not first_segment or first_segment in _RESERVED_SEGMENTS):
                raise ValueError(
                    f"prefix {self.prefix} is reserved for the gateway: choose another or set hosts"
                )
        for path in self.paths:
            reserved_segments = _OTHER_APPS if self.hosts else _RESERVED_SEGMENTS - {"api"}
            if _get_first_segment(path) in reserved_segments:
                raise ValueError(f"path {path} is reserved for the gateway: choose another")
        if len({upstream.url for upstream in self.upstreams}) < len(self.upstreams):
            raise ValueError("upstreams: two have the same url; every url must be different")
        if self.async_ and self.hosts:
            raise ValueError(
                "async and hosts cannot be combined: jobs call routes by the gateway's own address"
            )
        has_only_own_apps = all(_is_gateway_url(upstream.url) for upstream in self.upstreams)
        if self.pass_credentials and not has_only_own_apps:
            raise ValueError("pass_credentials is only allowed if all upstreams are 'door/…'")
        return self

    def to_route(self, gateway_url: str) -> Route:
        """Return the route for the route table; in URLs, ``gateway_url`` replaces ``door``."""
        limits = self.limits
        has_limits = limits.requests_per_minute or limits.concurrent_requests
        return Route(
            name=self.name,
            upstreams=tuple(upstream.to_upstream(gateway_url) for upstream in self.upstreams),
            hosts=frozenset(self.hosts),
            paths=frozenset(self.paths),
            prefix=self.prefix,
            strip_prefix=self.strip_prefix,
            proxy_redirect=self.proxy_redirect,
            rewrite=self.rewrite.to_rewrite() if self.rewrite is not None else None,
            balance=self.balance,
            sticky=self.sticky.lower() if self.sticky is not None else None,
            retries=self.retries,
            timeouts=Timeouts(**self.timeouts.model_dump()),
            health=HealthCheck(**self.health.model_dump()) if self.health is not None else None,
            scopes=self.scopes,
            limit=Limit(
                subject=f"route:{self.name}",
                requests_per_minute=limits.requests_per_minute,
                concurrent_requests=limits.concurrent_requests,
            )
            if has_limits
            else None,
            max_concurrent=limits.concurrent,
            respond_async=self.async_,
            pass_credentials=self.pass_credentials,
        )


def _is_gateway_url(url: str) -> bool:
    return url == _GATEWAY or url.startswith(f"{_GATEWAY}/")


def _get_first_segment(path: str) -> str:
    return path.strip("/").partition("/")[0]


class GatewayConfig(_StrictModel):
    """Configures the routes to the studio's other services behind the gateway."""

    routes: tuple[RouteConfig, ...] = Field((), max_length=1_000)

    @model_validator(mode="after")
    def _require_distinct_routes(self) -> GatewayConfig:
        self.to_route_table("http://127.0.0.1")
        return self

    def to_route_table(self, gateway_url: str) -> RouteTable:
        """Return the route table; in URLs of upstreams, ``gateway_url`` replaces ``door``."""
        return RouteTable(route.to_route(gateway_url) for route in self.routes)
