"""Contains `Proxy`, the ASGI app that serves the route table behind the gatekeeper."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from moyin.access.gatekeeper.asgi import Receive, Scope, Send, TrustedProxies, get_header
from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.identity import JOBS_WRITE
from moyin.errors import InvalidRequest, RouteNotFound, UnsupportedFeature
from moyin.http.headers import prefers_async_response
from moyin.proxy.deferral import Deferral, defer
from moyin.proxy.forward import ClientDisconnected, Exchange
from moyin.proxy.headers import request_headers
from moyin.proxy.identity import IdentitySigner
from moyin.proxy.paths import lenient_path, upstream_path, without_api_key
from moyin.proxy.pool import InFlightCount, Pool, run_health_checks
from moyin.proxy.route import Route, RouteTable
from moyin.proxy.sockets import relay_socket

__all__ = ["Proxy"]

# Below the keep-alive of common servers, so that a request never goes out on a connection that the
# upstream is about to close.
_KEEP_ALIVE_SECONDS = 4.0
# TRACE echoes the request, including headers that only the service may see.
_FORBIDDEN_METHODS = frozenset({"CONNECT", "TRACE"})


@dataclass(frozen=True, slots=True)
class _Service:
    pool: Pool
    signer: IdentitySigner
    health_checks: asyncio.Task[None]


class Proxy:
    """Forwards requests to the services in the route table.

    Call `start` in the event loop that serves requests, and `close` at the end.

    Args:
        meter: enforces the limits of routes; None: routes have no limits.
        deferral: turns calls into jobs; None: calls are never deferred.
        trusted_proxies: proxies in front of the gateway whose ``x-forwarded-for`` is believed.
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
        self._table = RouteTable()
        self._services: dict[str, _Service] = {}
        self._in_flight: dict[str, InFlightCount] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def table(self) -> RouteTable:
        """The route table in use."""
        return self._table

    async def start(self) -> None:
        """Open the HTTP session and start serving the current route table."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp would retry on the same upstream; retries are decided by `Exchange`.
        self._session._retry_connection = False
        self.configure(self._table)

    def configure(self, table: RouteTable) -> None:
        """Serve ``table`` from the next request on; requests in flight keep their old route."""
        previous = self._services
        counts = self._in_flight
        # Keep the counts of removed routes too: a route that returns still has those requests.
        busy = {name: count for name, count in counts.items() if count.count}
        named = {r.name: counts.get(r.name) or InFlightCount() for r in table.routes}
        self._in_flight = busy | named
        if self._session is not None:
            self._services = {
                route.name: self._new_service(self._session, route, previous.get(route.name))
                for route in table.routes
            }
        self._table = table
        for service in previous.values():
            service.health_checks.cancel()

    async def close(self) -> None:
        """Stop the health checks and close the HTTP session."""
        checks = [service.health_checks for service in self._services.values()]
        for task in checks:
            task.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def match(self, scope: Scope) -> Route | None:
        """Return the route of the request; None when the gateway's own app serves it."""
        return self._table.match(get_header(scope, b"host") or "", scope["path"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request for which `match` finds a route.

        Raises:
            MoyinError: rendered by the gatekeeper.
        """
        route = self.match(scope)
        if route is None or self._session is None:
            raise RouteNotFound(f"no route matches the path {scope['path']}")
        request = context(scope)
        for required_scope in sorted(route.scopes):
            request.require(required_scope)
        raw_path = _raw_path(scope)
        path = upstream_path(route, raw_path)
        lenient = lenient_path(scope["path"])
        if (
            lenient is not None
            and self._table.match(get_header(scope, b"host") or "", lenient) != route
        ):
            raise InvalidRequest(
                f"some servers read the path as {lenient}, which belongs to another route: write "
                "it without parameters (;) and repeated slashes",
                field="path",
            )
        if scope["type"] != "websocket" and scope["method"] in _FORBIDDEN_METHODS:
            raise UnsupportedFeature(f"{scope['method']} is not forwarded", field="method")
        try:
            if (deferral := self._deferral_of(route, request, scope)) is not None:
                # The route's limits apply when the job makes the call, not now.
                await defer(deferral, scope, receive, send, path=raw_path)
            else:
                await self._forward(self._session, route, path, scope, receive, send)
        except ClientDisconnected:
            # There is no client left to answer; the access log records status 499.
            return

    async def _forward(
        self,
        session: aiohttp.ClientSession,
        route: Route,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        service = self._services[route.name]
        admission = await self._check_limit(route, context(scope))
        try:
            with service.pool.admit():
                await self._serve(session, service, path, scope, receive, send)
        finally:
            if admission is not None:
                admission.release()

    async def _check_limit(self, route: Route, request: RequestContext) -> Admission | None:
        if route.limit is None or self._meter is None:
            return None
        return await self._meter.admit([route.limit], owner=request.owner)

    async def _serve(
        self,
        session: aiohttp.ClientSession,
        service: _Service,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        route, request = service.pool.route, context(scope)
        query = scope["query_string"].decode("latin-1")
        is_websocket = scope["type"] == "websocket"
        if is_websocket and not route.pass_credentials:
            query = without_api_key(query)
        headers = request_headers(
            scope,
            request_id=request.request_id,
            address=self._trusted_proxies.get_client_address(scope),
            prefix=route.prefix if route.strip_prefix else None,
            pass_credentials=route.pass_credentials,
            identity=service.signer.headers(request.identity),
        )
        sticky = get_header(scope, route.sticky.encode()) if route.sticky else None
        path_and_query = f"{path}?{query}" if query else path
        if is_websocket:
            await relay_socket(
                session, service.pool, scope, receive, send,
                upstream_path=path_and_query, headers=headers, sticky=sticky,
            )  # fmt: skip
        else:
            await Exchange(
                session, service.pool, scope, receive, send,
                upstream_path=path_and_query, headers=headers, sticky=sticky,
            ).run()  # fmt: skip

    def _deferral_of(self, route: Route, request: RequestContext, scope: Scope) -> Deferral | None:
        """Return the deferral if the call becomes a job."""
        deferral, identity = self._deferral, request.identity
        # A job calls the gateway by its own address, where routes for other hosts do not match.
        if deferral is None or identity is None or route.hosts or scope["type"] == "websocket":
            return None
        # A client's preference needs the scope to create jobs; a route's `async` setting does not.
        preferred = prefers_async_response(scope["headers"]) and identity.has_scope(JOBS_WRITE)
        is_deferred = (route.respond_async or preferred) and not deferral.is_called_by_job(identity)
        return deferral if is_deferred else None

    def _new_service(
        self, session: aiohttp.ClientSession, route: Route, previous: _Service | None
    ) -> _Service:
        known = {m.upstream.url: m for m in previous.pool.members} if previous is not None else {}
        pool = Pool.build(route, known, self._in_flight[route.name])
        checks = asyncio.get_running_loop().create_task(run_health_checks(session, pool))
        return _Service(pool, IdentitySigner(self._signing_key, route.name), checks)


def _raw_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("latin-1")
