"""The ``user_config`` of the app ``gateway``: the routes of other services. Hot-reloaded.

Upstreams are named here and nowhere else: no request can choose an address.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moyin.comfy_api.protocol.paths import FIRST_SEGMENTS
from moyin.domain.limits import Limit
from moyin.proxy.route import (
    Balance,
    HealthCheck,
    Rewrite,
    Route,
    RouteTable,
    Timeouts,
    Upstream,
)

__all__ = ["DOOR", "GatewayConfig", "RouteConfig"]

# As an upstream: another app behind this very door, wherever it listens.
DOOR = "door"
_NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"
_HOST = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_PATH = r"^/[!-~]*$"
_SCOPE = r"^[a-z][a-z0-9:._-]{0,63}$"
# First segments of what the door serves itself, ComfyUI's API among it. A route for some host
# only may take them; exact paths below /api are free.
_RESERVED = frozenset(
    {
        "accounts", "api", "artifacts", "comfy", "console", "docs", "healthz", "jobs", "openapi.json",
        "readyz", "templates", "v1", *FIRST_SEGMENTS,
    }
)  # fmt: skip
# Handed to other apps by their path alone, before anybody looks at the host.
_ELSEWHERE = frozenset({"accounts", "v1"})
_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Path = Annotated[str, Field(pattern=_PATH, max_length=1024)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamConfig(_Config):
    """A server; ``url`` may end in a path that goes before every other."""

    url: str
    weight: int = Field(1, ge=1, le=1_000)

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        if url == DOOR or url.startswith(f"{DOOR}/"):
            return url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http(s) URL, or 'door' for an app behind this door")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must have no user, query or fragment")
        _ = parts.port  # raises ValueError for one that is none
        return url.rstrip("/")

    def upstream(self, door: str) -> Upstream:
        url = self.url
        if url == DOOR or url.startswith(f"{DOOR}/"):
            url = door.rstrip("/") + url.removeprefix(DOOR)
        return Upstream(url=url, weight=self.weight)


class TimeoutsConfig(_Config):
    """Seconds: to connect, to the answer's first byte, of silence within it."""

    connect: _Seconds = 2.0
    first_byte: _Seconds = 60.0
    idle: _Seconds = 300.0


class HealthConfig(_Config):
    """Ask every upstream for ``path`` now and then; two answers in a row change its state."""

    path: _Path
    interval: _Seconds = 5.0
    timeout: _Seconds = 2.0
    rise: int = Field(2, ge=1, le=100)
    fall: int = Field(2, ge=1, le=100)


class RewriteConfig(_Config):
    """A regular expression on the path, and what replaces its first match (``\\1`` …)."""

    match: str = Field(max_length=256)
    to: str = Field(max_length=256)

    @model_validator(mode="after")
    def _compiles(self) -> RewriteConfig:
        try:
            self.rewrite()("/")
        except (re.error, IndexError) as error:
            raise ValueError(f"match and to are no valid replacement: {error}") from None
        return self

    def rewrite(self) -> Rewrite:
        return Rewrite(pattern=re.compile(self.match), to=self.to)


class LimitsConfig(_Config):
    """What a tenant may ask of the route; ``concurrent`` bounds all tenants in one replica."""

    requests_per_minute: int | None = Field(None, ge=1)
    concurrent_requests: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)


class RouteConfig(_Config):
    """One service behind the door: exact ``paths``, everything below ``prefix``, or both.

    Attributes:
        hosts: only requests with one of these in their Host header; what is below ``/v1`` and
            ``/accounts`` gets to other apps even there.
        strip_prefix: take ``prefix`` off before the path goes on.
        proxy_redirect: put it back into redirects; false for a service that does so itself because
            it obeys ``x-forwarded-prefix``.
        rewrite: is applied after that.
        sticky: a header; the same value goes to the same upstream.
        retries: further upstreams that a failed safe request may try.
        scopes: all of them are needed.
        async: every call becomes a job; without it, those that prefer ``respond-async``.
        pass_credentials: hand the caller's key on instead of a signed identity; for ``door``.
    """

    name: str = Field(pattern=_NAME)
    hosts: tuple[Annotated[str, Field(pattern=_HOST)], ...] = ()
    paths: tuple[_Path, ...] = ()
    prefix: _Path | None = None
    upstreams: tuple[UpstreamConfig, ...] = Field(min_length=1, max_length=256)
    strip_prefix: bool = True
    proxy_redirect: bool = True
    rewrite: RewriteConfig | None = None
    balance: Balance = Balance.ROUND_ROBIN
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
    def _short_form(cls, value: Any) -> Any:
        """A plain URL is an upstream of weight 1."""
        if isinstance(value, list | tuple):
            return [{"url": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _reachable(self) -> RouteConfig:
        if self.prefix is None and not self.paths:
            raise ValueError("needs a prefix or paths")
        if self.prefix is not None:
            first = _first_segment(self.prefix)
            if first in _ELSEWHERE:
                raise ValueError(f"prefix {self.prefix} belongs to another app of the door")
            if not self.hosts and (not first or first in _RESERVED):
                raise ValueError(
                    f"prefix {self.prefix} belongs to the door itself; add hosts or choose another"
                )
        for path in self.paths:
            taken = _ELSEWHERE if self.hosts else _RESERVED - {"api"}
            if _first_segment(path) in taken:
                raise ValueError(f"path {path} belongs to the door itself")
        if len({upstream.url for upstream in self.upstreams}) < len(self.upstreams):
            raise ValueError("an upstream is named twice")
        if self.async_ and self.hosts:
            raise ValueError("async needs a route for every host: a job calls the door by its name")
        inner = all(u.url == DOOR or u.url.startswith(f"{DOOR}/") for u in self.upstreams)
        if self.pass_credentials and not inner:
            raise ValueError("pass_credentials would hand keys of this door to another server")
        return self

    def route(self, door: str) -> Route:
        """The domain form. ``door``: where this door is, for upstreams behind it."""
        limits = self.limits
        limited = limits.requests_per_minute or limits.concurrent_requests
        return Route(
            name=self.name,
            upstreams=tuple(upstream.upstream(door) for upstream in self.upstreams),
            hosts=frozenset(self.hosts),
            paths=frozenset(self.paths),
            prefix=self.prefix,
            strip_prefix=self.strip_prefix,
            proxy_redirect=self.proxy_redirect,
            rewrite=self.rewrite.rewrite() if self.rewrite is not None else None,
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
            if limited
            else None,
            concurrent=limits.concurrent,
            respond_async=self.async_,
            pass_credentials=self.pass_credentials,
        )


def _first_segment(path: str) -> str:
    return path.strip("/").partition("/")[0]


class GatewayConfig(_Config):
    """The routes of other services behind the door."""

    routes: tuple[RouteConfig, ...] = Field((), max_length=1_000)

    @model_validator(mode="after")
    def _distinct(self) -> GatewayConfig:
        self.table("http://127.0.0.1")
        return self

    def table(self, door: str) -> RouteTable:
        return RouteTable(route.route(door) for route in self.routes)
