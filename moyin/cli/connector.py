"""Serves the render farm on a local port, for clients of ComfyUI that cannot send an API key.

It forwards HTTP and WebSockets to the gateway with the key of the profile. A client of the port has
the rights of that key, so the port is open to this machine only, and rejects requests from web
pages of other sites. Such a page could otherwise send requests through the user's browser, also
under a host name of its own that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from moyin.access.gatekeeper.credential_finder import SESSION_COOKIE
from moyin.cli.socket_relay import MAX_MESSAGE_BYTES, relay
from moyin.comfy_api.protocol.paths import PAGE
from moyin.errors import BackendUnavailable, CrossSiteRequest, MoyinError, StackError
from moyin.http.client import LazySession
from moyin.stack.profile import Profile

__all__ = ["Connector", "reject_cross_site", "upstream_headers"]

_HOST = "127.0.0.1"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_CONNECT_SECONDS = 5.0
# The gateway's streams send heartbeats more often than this, so a longer silence is a failure.
_MAX_SILENCE_SECONDS = 300.0
_HANDSHAKE_SECONDS = 20.0
_HEARTBEAT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
# Shorter than the gateway's own limit: a request on a connection that it closes would be lost.
_KEEP_ALIVE_SECONDS = 4.0
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# These describe the local port, which the gateway does not know, or contain another key.
_LOCAL_HEADERS = frozenset(
    {"authorization", "cookie", "expect", "host", "origin", "referer", "x-api-key"}
)
_LOCAL_HEADER_PREFIXES = ("sec-fetch-", "sec-websocket-")
_NO_DEFAULT_HEADERS = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})
_GOING_AWAY = 1001


class Connector:
    """Forwards the requests of a port of 127.0.0.1 to the gateway.

    Args:
        profile: the gateway's URL, and the key that is added to every request.
    """

    def __init__(self, profile: Profile) -> None:
        self._gateway_url = profile.url
        self._key = profile.api_key
        self._session = LazySession(_new_session)
        self._sockets: set[web.WebSocketResponse] = set()

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[str]:
        """Serve on ``port`` (0: any free port) within the context, and yield its URL.

        Raises:
            StackError: the port cannot be opened.
        """
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        app.on_shutdown.append(self._close_sockets)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, _HOST, port).start()
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                problem = "is in use" if in_use else f"cannot be opened ({error.strerror})"
                raise StackError(f"port {port} {problem}: choose another with --port") from error
            yield f"http://{_HOST}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            await self._session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Forward one request to the gateway and return its response."""
        try:
            reject_cross_site(request.headers)
            target = self._target(request)
            if web.WebSocketResponse().can_prepare(request):
                return await self._relay(request, target)
            return await self._forward(request, target)
        except CrossSiteRequest as error:
            return _error_response(403, error)
        except BackendUnavailable as error:
            return _error_response(502, error)

    def _target(self, request: web.Request) -> URL:
        """Return the gateway's URL for the request.

        Raises:
            CrossSiteRequest: the request line contains an absolute URL, as for a proxy.
        """
        if not request.raw_path.startswith("/"):
            raise CrossSiteRequest("this port is not a proxy: the request path must begin with /")
        return URL(self._gateway_url + request.raw_path, encoded=True)

    async def _forward(self, request: web.Request, target: URL) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with self._session.get().request(
                request.method,
                target,
                headers=upstream_headers(request.headers, self._key, request.path),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=_NO_DEFAULT_HEADERS,
            ) as upstream:
                response = web.StreamResponse(
                    status=upstream.status,
                    reason=upstream.reason,
                    headers=_end_to_end(upstream.headers),
                )
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None or not response.prepared:
                raise self._unreachable() from error
            # Abort, so that the client does not take the interrupted response for complete.
            if request.transport is not None:
                request.transport.abort()
            return response

    def _unreachable(self) -> BackendUnavailable:
        return BackendUnavailable(f"no response from the gateway at {self._gateway_url}: is it up?")

    async def _relay(self, request: web.Request, target: URL) -> web.StreamResponse:
        protocols = request.headers.get("sec-websocket-protocol", "")
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                upstream = await self._session.get().ws_connect(
                    target,
                    headers=upstream_headers(request.headers, self._key, request.path),
                    protocols=[name.strip() for name in protocols.split(",") if name.strip()],
                    max_msg_size=MAX_MESSAGE_BYTES,
                    heartbeat=_HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.WSServerHandshakeError as error:
            return _error_response(
                error.status, BackendUnavailable("the gateway rejected the WebSocket handshake")
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable() from error
        client = web.WebSocketResponse(
            protocols=[upstream.protocol] if upstream.protocol else (),
            max_msg_size=MAX_MESSAGE_BYTES,
            timeout=_CLOSE_SECONDS,
            compress=False,
        )
        try:
            await client.prepare(request)
            self._sockets.add(client)
            await relay(client, upstream)
        finally:
            self._sockets.discard(client)
            await upstream.close(code=_GOING_AWAY)
        return client

    async def _close_sockets(self, _: web.Application) -> None:
        await asyncio.gather(*(socket.close(code=_GOING_AWAY) for socket in self._sockets))


def reject_cross_site(headers: Mapping[str, str]) -> None:
    """Reject requests that a browser sends for a page of another site.

    Raises:
        CrossSiteRequest: the Host, Origin or Sec-Fetch-Site header names another site.
    """
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise CrossSiteRequest("the Host header must be 127.0.0.1 or localhost")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        raise CrossSiteRequest("requests from web pages of other sites are not allowed (Origin)")
    site = headers.get("sec-fetch-site", "none")
    # Following a link opens the page, but gives the other site no access to it.
    is_navigation = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    if site not in ("none", "same-origin") and not is_navigation:
        raise CrossSiteRequest(
            "requests from web pages of other sites are not allowed (Sec-Fetch-Site)"
        )


def upstream_headers(headers: Mapping[str, str], key: str, path: str) -> CIMultiDict[str]:
    """Return the headers for the gateway: the client's end-to-end headers, and the key.

    Headers about the local address are removed. The frontend's page takes the key from a cookie.
    """
    forwarded = CIMultiDict(
        (name, value)
        for name, value in _end_to_end(headers).items()
        if name.lower() not in _LOCAL_HEADERS
        and not name.lower().startswith(_LOCAL_HEADER_PREFIXES)
    )
    forwarded["Authorization"] = f"Bearer {key}"
    if path.startswith(PAGE):
        forwarded["Cookie"] = f"{SESSION_COOKIE}={key}"
    return forwarded


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers without the hop-by-hop ones and those in Connection (RFC 9110, 7.6)."""
    pairs = CIMultiDict(headers)
    named = ",".join(pairs.getall("connection", [])).lower().split(",")
    dropped = _HOP_BY_HOP | {name.strip() for name in named}
    return CIMultiDict((n, value) for n, value in pairs.items() if n.lower() not in dropped)


def _is_loopback(host: str) -> bool:
    try:
        return URL(f"http://{host}/").host in _LOOPBACK and "@" not in host
    except ValueError:
        return False


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_MAX_SILENCE_SECONDS
        ),
    )


def _error_response(status: int, error: MoyinError) -> web.Response:
    """Return an error response in ComfyUI's format."""
    body = {"type": error.code, "message": error.message, "details": "", "extra_info": {}}
    return web.json_response({"error": body, "node_errors": {}}, status=status)
