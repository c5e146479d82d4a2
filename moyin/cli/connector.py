"""`Connector`: a port of this machine where clients of ComfyUI find the farm.

Clients that can send no key take it for a ComfyUI that runs here. HTTP and WebSockets flow through
it to the door, with the key of the profile. Whoever reaches the port has that key's rights, so it
is open to this machine alone, and to no page of another site: a browser would carry its requests
here, also under a foreign name that was made to point at 127.0.0.1 (DNS rebinding).
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

from moyin.access.gatekeeper.credentials import COOKIE
from moyin.cli.socket_relay import MAX_MESSAGE_BYTES, relay
from moyin.comfy_api.protocol.paths import PAGE
from moyin.errors import BackendUnavailable, CrossSiteRequest, MoyinError, StackError
from moyin.http.client import LazySession
from moyin.stack.profile import Profile

__all__ = ["Connector", "check_local", "onward_headers"]

_HOST = "127.0.0.1"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_CONNECT_SECONDS = 5.0
# Streams of the door send a sign of life more often than this; nothing else may take longer.
_SILENCE_SECONDS = 300.0
_HANDSHAKE_SECONDS = 20.0
_HEARTBEAT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
# One that is closing can't be told from one that is free.
_KEEP_ALIVE_SECONDS = 4.0
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# Of this address, which the door does not know, or of a key that is not the profile's.
_OF_HERE = frozenset(
    {"authorization", "cookie", "expect", "host", "origin", "referer", "x-api-key"}
)
_OF_HERE_PREFIXES = ("sec-fetch-", "sec-websocket-")
_SKIPPED = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})
_GOING_AWAY = 1001


class Connector:
    """Passes on what comes to one port of 127.0.0.1.

    Args:
        profile: the door, and the key that everything is sent with.
    """

    def __init__(self, profile: Profile) -> None:
        self._door = profile.url
        self._key = profile.api_key
        self._session = LazySession(_new_session)
        self._sockets: set[web.WebSocketResponse] = set()

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[str]:
        """Serve at ``port`` (0: any that is free) within the context; gives the URL there.

        Raises:
            StackError: the port can't be had.
        """
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.serve)
        app.on_shutdown.append(self._hang_up)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, _HOST, port).start()
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                why = "is taken" if taken else f"can't be had ({error.strerror})"
                raise StackError(
                    f"port {port} of this machine {why}: name another with --port"
                ) from error
            yield f"http://{_HOST}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            await self._session.close()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request with what the door answers."""
        try:
            check_local(request.headers)
            target = self._target(request)
            if web.WebSocketResponse().can_prepare(request):
                return await self._relay(request, target)
            return await self._pass_on(request, target)
        except CrossSiteRequest as error:
            return _refusal(403, error)
        except BackendUnavailable as error:
            return _refusal(502, error)

    def _target(self, request: web.Request) -> URL:
        """
        Raises:
            CrossSiteRequest: it names another server, as a request to a proxy does.
        """
        if not request.raw_path.startswith("/"):
            raise CrossSiteRequest("this is no proxy")
        return URL(self._door + request.raw_path, encoded=True)

    async def _pass_on(self, request: web.Request, target: URL) -> web.StreamResponse:
        answer: web.StreamResponse | None = None
        try:
            async with self._session.get().request(
                request.method,
                target,
                headers=onward_headers(request.headers, self._key, request.path),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=_SKIPPED,
            ) as told:
                answer = web.StreamResponse(
                    status=told.status, reason=told.reason, headers=_end_to_end(told.headers)
                )
                await answer.prepare(request)
                async for piece in told.content.iter_any():
                    await answer.write(piece)
                await answer.write_eof()
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if answer is None or not answer.prepared:
                raise BackendUnavailable(f"nobody answers at {self._door}: is it up?") from error
            # An answer that broke off must not look like one that ended.
            if request.transport is not None:
                request.transport.abort()
            return answer

    async def _relay(self, request: web.Request, target: URL) -> web.StreamResponse:
        asked = request.headers.get("sec-websocket-protocol", "")
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                door = await self._session.get().ws_connect(
                    target,
                    headers=onward_headers(request.headers, self._key, request.path),
                    protocols=[name.strip() for name in asked.split(",") if name.strip()],
                    max_msg_size=MAX_MESSAGE_BYTES,
                    heartbeat=_HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.WSServerHandshakeError as error:
            return _refusal(error.status, BackendUnavailable("the door refused the WebSocket"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BackendUnavailable(f"nobody answers at {self._door}: is it up?") from error
        client = web.WebSocketResponse(
            protocols=[door.protocol] if door.protocol else (),
            max_msg_size=MAX_MESSAGE_BYTES,
            timeout=_CLOSE_SECONDS,
            compress=False,
        )
        try:
            await client.prepare(request)
            self._sockets.add(client)
            await relay(client, door)
        finally:
            self._sockets.discard(client)
            await door.close(code=_GOING_AWAY)
        return client

    async def _hang_up(self, _: web.Application) -> None:
        await asyncio.gather(*(socket.close(code=_GOING_AWAY) for socket in self._sockets))


def check_local(headers: Mapping[str, str]) -> None:
    """Refuse what a browser sends here for a page of another site.

    Raises:
        CrossSiteRequest: the page, or the name by which this machine was found, is another's.
    """
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise CrossSiteRequest("only 127.0.0.1 and localhost are names of this port")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        raise CrossSiteRequest("a page of another site may not do this")
    site = headers.get("sec-fetch-site", "none")
    # Following a link to here shows a page, and tells the other site nothing.
    followed = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    if site not in ("none", "same-origin") and not followed:
        raise CrossSiteRequest("a page of another site may not do this")


def onward_headers(headers: Mapping[str, str], key: str, path: str) -> CIMultiDict[str]:
    """What the door is told: the client's headers, less those of the connection and of this
    address, and the key. The frontend's page is shown to who has it in a cookie."""
    kept = CIMultiDict(
        (name, value)
        for name, value in _end_to_end(headers).items()
        if name.lower() not in _OF_HERE and not name.lower().startswith(_OF_HERE_PREFIXES)
    )
    kept["Authorization"] = f"Bearer {key}"
    if path.startswith(PAGE):
        kept["Cookie"] = f"{COOKIE}={key}"
    return kept


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Without the connection's own headers, and those that it names itself (RFC 9110, 7.6)."""
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
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        ),
    )


def _refusal(status: int, error: MoyinError) -> web.Response:
    """An error in the shape in which ComfyUI tells its own."""
    told = {"type": error.code, "message": error.message, "details": "", "extra_info": {}}
    return web.json_response({"error": told, "node_errors": {}}, status=status)
