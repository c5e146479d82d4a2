"""`Proxy`: the ASGI app that serves the route table, inside the gatekeeper."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from moyin.access.gatekeeper.addresses import TrustedProxies
from moyin.access.gatekeeper.asgi import Receive, Scope, Send, header
from moyin.access.gatekeeper.context import RequestContext, context
from moyin.access.gatekeeper.limits import Admission, Meter
from moyin.domain.identity import JOBS_WRITE
from moyin.errors import InvalidRequest, RouteNotFound, UnsupportedFeature
from moyin.proxy.body import ClientLeft
from moyin.proxy.checks import watch
from moyin.proxy.deferral import Deferral, defer, prefers_job
from moyin.proxy.forward import Exchange
from moyin.proxy.headers import request_headers
from moyin.proxy.identity import IdentitySigner
from moyin.proxy.paths import other_reading, target, without_key
from moyin.proxy.pool import Pool, UnderWay
from moyin.proxy.route import Route, RouteTable
from moyin.proxy.sockets import relay_socket

__all__ = ["Proxy"]

# Idle connections are dropped before the usual server drops them: one that is closing can't be
# told from one that is free.
_KEEP_ALIVE_SECONDS = 4.0
# The answer to TRACE is the request, with what only the service should see.
_REFUSED = frozenset({"CONNECT", "TRACE"})


@dataclass(frozen=True, slots=True)
class _Service:
    pool: Pool
    signer: IdentitySigner
    watcher: asyncio.Task[None]


class Proxy:
    """Routes of other services. `start` it in the loop that serves, `close` it at the end.

    Args:
        meter: counts the limits of routes; None: they have none.
        deferral: makes jobs of slow calls; None: none can be made.
        proxies: in front of the door, whose word on the client's address is passed on.
    """

    def __init__(
        self,
        *,
        signing_key: bytes,
        meter: Meter | None = None,
        deferral: Deferral | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._signing_key = signing_key
        self._proxies = proxies or TrustedProxies()
        self._meter = meter
        self._deferral = deferral
        self._table = RouteTable()
        self._services: dict[str, _Service] = {}
        self._under_way: dict[str, UnderWay] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def table(self) -> RouteTable:
        return self._table

    async def start(self) -> None:
        """Open for business, with the table that is there."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp would ask the same upstream again; whom to ask again is decided here.
        self._session._retry_connection = False
        self.configure(self._table)

    def configure(self, table: RouteTable) -> None:
        """Serve ``table`` from the next request on; those under way end as they began."""
        before = self._services
        counted = self._under_way
        # Also of a route that is gone for now: what is under way there is no less work.
        busy = {name: requests for name, requests in counted.items() if requests.count}
        named = {r.name: counted.get(r.name) or UnderWay() for r in table.routes}
        self._under_way = busy | named
        if self._session is not None:
            self._services = {
                route.name: self._service(self._session, route, before.get(route.name))
                for route in table.routes
            }
        self._table = table
        for service in before.values():
            service.watcher.cancel()

    async def close(self) -> None:
        for service in self._services.values():
            service.watcher.cancel()
        watchers = [service.watcher for service in self._services.values()]
        await asyncio.gather(*watchers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def match(self, scope: Scope) -> Route | None:
        """The route that a request is for."""
        return self._table.match(header(scope, b"host") or "", scope["path"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that `match` has a route for.

        Raises:
            MoyinError: for the gatekeeper to render.
        """
        route = self.match(scope)
        if route is None or self._session is None:
            raise RouteNotFound(f"there is no {scope['path']}")
        caller = context(scope)
        for needed in sorted(route.scopes):
            caller.require(needed)
        raw_path = _raw_path(scope)
        path = target(route, raw_path)
        read = other_reading(scope["path"])
        if read is not None and self._table.match(header(scope, b"host") or "", read) != route:
            raise InvalidRequest(
                f"the path could also be read as {read}, which is another route's: write it without "
                "parameters (;) and repeated slashes",
                field="path",
            )
        if scope["type"] != "websocket" and scope["method"] in _REFUSED:
            raise UnsupportedFeature(f"{scope['method']} is not passed on", field="method")
        try:
            if self._deferral is not None and self._wants_job(route, caller, scope):
                # The route's limits are of what its service gets, which is when the job calls.
                await defer(self._deferral, scope, receive, send, path=raw_path)
            else:
                await self._pass(self._session, route, path, scope, receive, send)
        except ClientLeft:
            # Nobody is there to be answered; the access log says 499.
            return

    async def _pass(
        self,
        session: aiohttp.ClientSession,
        route: Route,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        service = self._services[route.name]
        admission = await self._admit(route, context(scope))
        try:
            with service.pool.entered():
                await self._serve(session, service, path, scope, receive, send)
        finally:
            if admission is not None:
                admission.release()

    async def _admit(self, route: Route, caller: RequestContext) -> Admission | None:
        if route.limit is None or self._meter is None:
            return None
        return await self._meter.admit([route.limit], owner=caller.owner)

    async def _serve(
        self,
        session: aiohttp.ClientSession,
        service: _Service,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        route, caller = service.pool.route, context(scope)
        query = scope["query_string"].decode("latin-1")
        socket = scope["type"] == "websocket"
        if socket and not route.pass_credentials:
            query = without_key(query)
        headers = request_headers(
            scope,
            request_id=caller.request_id,
            address=self._proxies.client(scope),
            prefix=route.prefix if route.strip_prefix else None,
            pass_credentials=route.pass_credentials,
            identity=service.signer.headers(caller.identity),
        )
        sticky = header(scope, route.sticky.encode()) if route.sticky else None
        asked = f"{path}?{query}" if query else path
        if socket:
            await relay_socket(
                session, service.pool, scope, receive, send,
                target=asked, headers=headers, sticky=sticky,
            )  # fmt: skip
        else:
            await Exchange(
                session, service.pool, scope, receive, send,
                target=asked, headers=headers, sticky=sticky,
            ).run()  # fmt: skip

    def _wants_job(self, route: Route, caller: RequestContext, scope: Scope) -> bool:
        # A job calls the door by its own name, where a host's routes are not found.
        if self._deferral is None or caller.identity is None or route.hosts:
            return False
        if scope["type"] == "websocket":
            return False
        # What a client prefers gives it no job that it may not make; what the route says, the studio
        # wants.
        preferred = prefers_job(scope) and caller.identity.has_scope(JOBS_WRITE)
        if not (route.respond_async or preferred):
            return False
        return not self._deferral.is_job(caller.identity)

    def _service(
        self, session: aiohttp.ClientSession, route: Route, before: _Service | None
    ) -> _Service:
        known = {m.upstream.url: m for m in before.pool.members} if before is not None else {}
        pool = Pool.build(route, known, self._under_way[route.name])
        watcher = asyncio.get_running_loop().create_task(watch(session, pool))
        return _Service(pool, IdentitySigner(self._signing_key, route.name), watcher)


def _raw_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("latin-1")
