"""Serves the render farm on a local port, for clients of ComfyUI that cannot send an API key.

HTTP requests and WebSockets are forwarded to the gateway with the key of the profile. Every client
of the port has the rights of that key. Therefore the port is open only to this machine, and
requests from web pages of other sites are rejected. Otherwise such a page could send requests
through the user's browser, even under its own host name if that resolves to 127.0.0.1 (DNS
rebinding).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from moyin.access.gatekeeper.credential_finder import HOST_PREFIX, SESSION_COOKIE
from moyin.comfy_api.protocol.paths import PAGE_PATH
from moyin.errors import BackendUnavailable, CrossSiteRequest, MoyinError, StackError
from moyin.http.client import LazySession
from moyin.stack.profile import Profile

_HOST = "127.0.0.1"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_CONNECT_SECONDS = 5.0
# Seconds of silence that count as a failure; the gateway's streams send heartbeats more often.
_MAX_SILENCE_SECONDS = 300.0
_HANDSHAKE_SECONDS = 20.0
_HEARTBEAT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
# Idle connections are closed earlier than the gateway closes them, because a request on a
# connection that the gateway is closing would be lost.
_KEEP_ALIVE_SECONDS = 4.0
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# Headers that are not forwarded, because they describe the local port or contain another key.
_LOCAL_HEADERS = frozenset(
    {"authorization", "cookie", "expect", "host", "origin", "referer", "x-api-key"}
)
_LOCAL_HEADER_PREFIXES = ("sec-fetch-", "sec-websocket-")
_NO_DEFAULT_HEADERS = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})
# The largest WebSocket message in bytes, enough for pictures. Each message is held in memory.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NORMAL, _GOING_AWAY = 1000, 1001  # close codes of WebSockets
# Close codes that must not be sent (RFC 6455, section 7.4.1).
_RESERVED_CODES = frozenset({1004, 1005, 1006, 1015})
_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Connector:
    """Forwards requests that arrive at a local port to the gateway, with the key of the profile."""

    def __init__(self, profile: Profile) -> None:
        self._gateway_url = profile.url
        self._key = profile.api_key
        self._session = LazySession(_new_session)
        self._sockets: set[web.WebSocketResponse] = set()

    @asynccontextmanager
    async def serve(self, port: int) -> AsyncIterator[str]:
        """Serve on a port of 127.0.0.1 within the context, and yield the port's URL.

        Args:
            port: the port's number; 0 means any free port.

        Raises:
            StackError: the port cannot be opened.
        """
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.respond)
        app.on_shutdown.append(self._close_sockets)
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=1,
            # Compressed bodies are forwarded unchanged, with their headers.
            auto_decompress=False,
        )
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, _HOST, port).start()
            except OSError as error:
                is_in_use = error.errno == errno.EADDRINUSE
                problem = "is in use" if is_in_use else f"cannot be opened ({error.strerror})"
                raise StackError(f"port {port} {problem}: choose another with --port") from error
            yield f"http://{_HOST}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            await self._session.close()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Forward an HTTP request or a WebSocket to the gateway, or return an error response."""
        try:
            reject_cross_site(request.headers)
            target_url = self._build_target_url(request)
            if web.WebSocketResponse().can_prepare(request):
                return await self._relay_socket(request, target_url)
            return await self._forward_request(request, target_url)
        except CrossSiteRequest as error:
            return self._render_error(403, error)
        except BackendUnavailable as error:
            return self._render_error(502, error)

    def _build_target_url(self, request: web.Request) -> URL:
        """Return the gateway's URL for the request.

        Raises:
            CrossSiteRequest: the request names another server, as if this port were a proxy.
        """
        if not request.raw_path.startswith("/"):
            raise CrossSiteRequest(
                "this port is not a proxy: the path of a request must begin with /"
            )
        return URL(self._gateway_url + request.raw_path, encoded=True)

    def _build_headers(self, request: web.Request) -> CIMultiDict[str]:
        return build_upstream_headers(request.headers, self._key, request.path)

    async def _forward_request(self, request: web.Request, target_url: URL) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with self._session.get().request(
                request.method,
                target_url,
                headers=self._build_headers(request),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=_NO_DEFAULT_HEADERS,
            ) as upstream_response:
                response = web.StreamResponse(
                    status=upstream_response.status,
                    reason=upstream_response.reason,
                    headers=_drop_hop_by_hop(upstream_response.headers),
                )
                await response.prepare(request)
                async for chunk in upstream_response.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None or not response.prepared:
                raise self._new_unreachable_error() from error
            # An aborted connection shows the client that the response is incomplete.
            if request.transport is not None:
                request.transport.abort()
            return response

    def _new_unreachable_error(self) -> BackendUnavailable:
        return BackendUnavailable(
            f"no response from the gateway at {self._gateway_url}: check that it is running"
        )

    async def _relay_socket(self, request: web.Request, target_url: URL) -> web.StreamResponse:
        protocols = request.headers.get("sec-websocket-protocol", "")
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                upstream_socket = await self._session.get().ws_connect(
                    target_url,
                    headers=build_upstream_headers(request.headers, self._key, request.path),
                    protocols=[name.strip() for name in protocols.split(",") if name.strip()],
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    heartbeat=_HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.WSServerHandshakeError as error:
            return self._render_error(
                error.status,
                BackendUnavailable(
                    f"the gateway rejected the WebSocket handshake with status {error.status}: "
                    "check the path and the API key"
                ),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._new_unreachable_error() from error
        client_socket = web.WebSocketResponse(
            protocols=[upstream_socket.protocol] if upstream_socket.protocol else (),
            max_msg_size=_MAX_MESSAGE_BYTES,
            timeout=_CLOSE_SECONDS,
            compress=False,
        )
        try:
            await client_socket.prepare(request)
            self._sockets.add(client_socket)
            await _relay_messages(client_socket, upstream_socket)
        finally:
            self._sockets.discard(client_socket)
            await upstream_socket.close(code=_GOING_AWAY)
        return client_socket

    def _render_error(self, status: int, error: MoyinError) -> web.Response:
        """Return an error response in ComfyUI's format."""
        body = {"type": error.code, "message": error.message, "details": "", "extra_info": {}}
        return web.json_response({"error": body, "node_errors": {}}, status=status)

    async def _close_sockets(self, _: web.Application) -> None:
        await asyncio.gather(*(socket.close(code=_GOING_AWAY) for socket in self._sockets))


async def _relay_messages(
    client_socket: web.WebSocketResponse, upstream_socket: aiohttp.ClientWebSocketResponse
) -> None:
    """Relay messages in both directions until one side closes, then close the other side."""
    copy_tasks = [
        asyncio.create_task(_copy_messages(client_socket, upstream_socket)),
        asyncio.create_task(_copy_messages(upstream_socket, client_socket)),
    ]
    try:
        await asyncio.wait(copy_tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copy_tasks:
            task.cancel()
        results = await asyncio.gather(*copy_tasks, return_exceptions=True)
    for result in results:
        # A broken connection is a normal end, but any other exception is a bug.
        if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError | OSError):
            raise result


async def _copy_messages(source_socket: _Socket, target_socket: _Socket) -> None:
    while True:
        message = await source_socket.receive()
        if message.type is WSMsgType.TEXT:
            await target_socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target_socket.send_bytes(message.data)
        else:
            reason = message.extra if message.type is WSMsgType.CLOSE else None
            code = source_socket.close_code
            if code is None or code in _RESERVED_CODES:
                code = _NORMAL if code == 1005 else _GOING_AWAY
            await target_socket.close(code=code, message=(reason or "").encode())
            return


def reject_cross_site(headers: Mapping[str, str]) -> None:
    """Raise CrossSiteRequest if a browser sent the request for a page of another site."""
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise CrossSiteRequest(f"the Host header must be 127.0.0.1 or localhost, not {host[:64]!r}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        raise CrossSiteRequest("requests from web pages of other sites are not allowed (Origin)")
    site = headers.get("sec-fetch-site", "none")
    # A link from another site opens the page, but does not let the other site read the page.
    is_navigation = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    if site not in ("none", "same-origin") and not is_navigation:
        raise CrossSiteRequest(
            "requests from web pages of other sites are not allowed (Sec-Fetch-Site)"
        )


def build_upstream_headers(headers: Mapping[str, str], key: str, path: str) -> CIMultiDict[str]:
    """Return the client's headers for the gateway, with the key added.

    Headers that are meant for the local port, such as Host and Cookie, are left out.
    For ComfyUI's frontend the key is also in a cookie, because the gateway serves the frontend's
    page only to browsers with a cookie.
    """
    forwarded_headers = CIMultiDict(
        (name, value)
        for name, value in _drop_hop_by_hop(headers).items()
        if name.lower() not in _LOCAL_HEADERS
        and not name.lower().startswith(_LOCAL_HEADER_PREFIXES)
    )
    forwarded_headers["Authorization"] = f"Bearer {key}"
    if path.startswith(PAGE_PATH):
        # Over HTTPS, the gateway accepts only the name with the prefix.
        forwarded_headers["Cookie"] = f"{HOST_PREFIX}{SESSION_COOKIE}={key}; {SESSION_COOKIE}={key}"
    return forwarded_headers


def _drop_hop_by_hop(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers without hop-by-hop headers (RFC 9110, 7.6).

    These include the headers that the header Connection names.
    """
    pairs = CIMultiDict(headers)
    named_headers = ",".join(pairs.getall("connection", [])).lower().split(",")
    dropped_headers = _HOP_BY_HOP | {name.strip() for name in named_headers}
    return CIMultiDict((n, value) for n, value in pairs.items() if n.lower() not in dropped_headers)


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
