"""Contains `Proxy`, the ASGI app that forwards requests according to the route table."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from moyin.access.gatekeeper.asgi import Receive, Scope, Send, TrustedProxies, get_header
from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.domain.identity import JOBS_WRITE
from moyin.errors import InvalidRequest, RouteNotFound, UnsupportedFeature
from moyin.http.headers import prefers_async_response
from moyin.proxy.deferral import Deferral, respond_with_job
from moyin.proxy.forward import ClientDisconnected, HttpExchange
from moyin.proxy.headers import build_request_headers
from moyin.proxy.identity import IdentitySigner
from moyin.proxy.paths import read_leniently, remove_api_key, to_upstream_path
from moyin.proxy.pool import InFlightCount, UpstreamPool, run_health_checks
from moyin.proxy.route import Route, RouteTable
from moyin.proxy.sockets import relay_websocket

# Shorter than the keep-alive of common servers, so that the proxy never sends a request on a
# connection that the upstream is about to close.
_KEEP_ALIVE_SECONDS = 4.0
# TRACE echoes the request, including headers that only the service may see.
_FORBIDDEN_METHODS = frozenset({"CONNECT", "TRACE"})


@dataclass(frozen=True, slots=True)
class _RouteRuntime:
    """Holds what one replica needs to serve a route; all routes share the HTTP session."""

    session: aiohttp.ClientSession
    pool: UpstreamPool
    signer: IdentitySigner
    health_checks: asyncio.Task[None]


class Proxy:
    """Forwards requests to the services in the route table; an ASGI app behind the gatekeeper.

    Call `start` in the event loop that serves requests, and `close` at the end.

    Args:
        signing_key: the stack's key, from which each route's key is derived.
        meter: enforces the limits of routes. Without a meter, routes have no limits.
        deferral: turns requests into jobs. Without a deferral, every request is forwarded at once.
        trusted_proxies: the proxies whose ``x-forwarded-for`` header names the client's address.
    """

    def __init__(
        self,
        *,
        signing_key: bytes,
        meter: RequestMeter | None = None,
        deferral: Deferral | None = None,
        trusted_proxies: TrustedProxies | None = None,
    ) -> None:
        self._signing_key = signing_key
        self._trusted_proxies = trusted_proxies or TrustedProxies()
        self._meter = meter
        self._deferral = deferral
        self._route_table = RouteTable()
        self._runtimes: dict[str, _RouteRuntime] = {}
        self._in_flight: dict[str, InFlightCount] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def route_table(self) -> RouteTable:
        """The route table in use."""
        return self._route_table

    @property
    def pools(self) -> list[UpstreamPool]:
        """One pool of upstreams per route, with the health and load that this replica observes."""
        return [runtime.pool for runtime in self._runtimes.values()]

    async def start(self) -> None:
        """Open the HTTP session, and start the health checks of the current route table."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp would retry on the same upstream; `HttpExchange` decides about retries instead.
        self._session._retry_connection = False
        self.configure(self._route_table)

    def configure(self, route_table: RouteTable) -> None:
        """Use ``route_table`` for all further requests; requests in flight keep their old route."""
        previous_runtimes = self._runtimes
        in_flight_counts = self._in_flight
        # Keep the counts of removed routes, which may be added again while old requests are open.
        busy_counts = {name: count for name, count in in_flight_counts.items() if count.count}
        current_counts = {
            r.name: in_flight_counts.get(r.name) or InFlightCount() for r in route_table.routes
        }
        self._in_flight = busy_counts | current_counts
        if self._session is not None:
            self._runtimes = {
                route.name: self._new_runtime(
                    self._session, route, previous_runtimes.get(route.name)
                )
                for route in route_table.routes
            }
        self._route_table = route_table
        for runtime in previous_runtimes.values():
            runtime.health_checks.cancel()

    async def close(self) -> None:
        """Stop the health checks and close the HTTP session."""
        health_checks = [runtime.health_checks for runtime in self._runtimes.values()]
        for task in health_checks:
            task.cancel()
        await asyncio.gather(*health_checks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def match(self, scope: Scope) -> Route | None:
        """Return the request's route, or None if the gateway's own app serves the request."""
        return self._route_table.match(get_header(scope, b"host") or "", scope["path"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request for which `match` finds a route.

        Raises:
            MoyinError: the request failed; the gatekeeper renders the error for the client.
        """
        route = self.match(scope)
        if route is None or self._session is None:
            raise RouteNotFound(
                f"no route of the proxy matches the path {scope['path']}; check the host and the path"
            )
        request = context(scope)
        for required_scope in sorted(route.scopes):
            request.require(required_scope)
        raw_path = _get_raw_path(scope)
        path = to_upstream_path(route, raw_path)
        lenient_path = read_leniently(scope["path"])
        if (
            lenient_path is not None
            and self._route_table.match(get_header(scope, b"host") or "", lenient_path) != route
        ):
            raise InvalidRequest(
                f"some servers read the path as {lenient_path}, which belongs to another route: write "
                "the path without parameters (;) and repeated slashes",
                field="path",
            )
        if scope["type"] != "websocket" and scope["method"] in _FORBIDDEN_METHODS:
            raise UnsupportedFeature(
                f"the method must not be {scope['method']}, which the proxy does not forward",
                field="method",
            )
        try:
            if (deferral := self._find_deferral(route, request, scope)) is not None:
                # The route's limits apply when the job sends the request, not now.
                await respond_with_job(deferral, scope, receive, send, path=raw_path)
            else:
                await self._forward(self._runtimes[route.name], path, scope, receive, send)
        except ClientDisconnected:
            # The client cannot receive a response; the access log records status 499.
            return

    async def _forward(
        self, runtime: _RouteRuntime, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Forward a request or WebSocket, and count it against the route's limits meanwhile."""
        admission, limit = None, runtime.pool.route.limit
        if limit is not None and self._meter is not None:
            admission = await self._meter.admit([limit], owner=context(scope).owner)
        try:
            with runtime.pool.admit():
                await self._send_to_upstream(runtime, path, scope, receive, send)
        finally:
            if admission is not None:
                admission.release()

    async def _send_to_upstream(
        self, runtime: _RouteRuntime, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        route, request = runtime.pool.route, context(scope)
        query = scope["query_string"].decode("latin-1")
        is_websocket = scope["type"] == "websocket"
        if is_websocket and not route.pass_credentials:
            query = remove_api_key(query)
        headers = build_request_headers(
            scope,
            request.request_id,
            address=self._trusted_proxies.get_client_address(scope),
            prefix=route.prefix if route.strip_prefix else None,
            pass_credentials=route.pass_credentials,
            identity_headers=runtime.signer.build_identity_headers(request.identity),
        )
        sticky_value = get_header(scope, route.sticky.encode()) if route.sticky else None
        path_and_query = f"{path}?{query}" if query else path
        if is_websocket:
            await relay_websocket(
                runtime.session, runtime.pool, scope, receive, send,
                upstream_path=path_and_query, headers=headers, sticky_value=sticky_value,
            )  # fmt: skip
        else:
            await HttpExchange(
                runtime.session, runtime.pool, scope, receive, send,
                upstream_path=path_and_query, headers=headers, sticky_value=sticky_value,
            ).forward()  # fmt: skip

    def _find_deferral(
        self, route: Route, request: RequestContext, scope: Scope
    ) -> Deferral | None:
        """Return the `Deferral` that turns the request into a job; None to forward it now."""
        deferral, identity = self._deferral, request.identity
        # Jobs call the gateway by its own address, where routes for other hosts do not match.
        if deferral is None or identity is None or route.hosts or scope["type"] == "websocket":
            return None
        # The client's preference requires the scope to create jobs; the route's `async` does not.
        is_preferred = prefers_async_response(scope["headers"]) and identity.has_scope(JOBS_WRITE)
        is_deferred = (route.respond_async or is_preferred) and not deferral.is_called_by_job(
            identity
        )
        return deferral if is_deferred else None

    def _new_runtime(
        self, session: aiohttp.ClientSession, route: Route, previous_runtime: _RouteRuntime | None
    ) -> _RouteRuntime:
        known_members = (
            {m.upstream.url: m for m in previous_runtime.pool.members}
            if previous_runtime is not None
            else {}
        )
        pool = UpstreamPool.build(route, known_members, self._in_flight[route.name])
        health_checks = asyncio.get_running_loop().create_task(run_health_checks(session, pool))
        signer = IdentitySigner(self._signing_key, route.name)
        return _RouteRuntime(session, pool, signer, health_checks)


def _get_raw_path(scope: Scope) -> str:
    """Return the percent-encoded path without the query."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw_path.partition(b"?")[0].decode("latin-1")
