"""One WebSocket: the client's end and the upstream's, message by message, both ways."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.errors import BackendUnavailable
from moyin.proxy.pool import RETRY_AFTER_SECONDS, TRY_ELSEWHERE, Member, Pool

__all__ = ["relay_socket"]

_log = logging.getLogger(__name__)
# A message is held whole while it crosses.
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_HEARTBEAT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
_GOING_AWAY = 1001
_UPSTREAM_FAILED = 1011
# Codes that may not be sent (RFC 6455, section 7.4.1).
_UNSENDABLE = frozenset({1004, 1005, 1006, 1015})
_UpstreamSocket = aiohttp.ClientWebSocketResponse


async def relay_socket(
    session: aiohttp.ClientSession,
    pool: Pool,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    target: str,
    headers: list[tuple[str, str]],
    sticky: str | None,
) -> None:
    """Connect to an upstream, accept the client, and pass messages until one of them ends.

    Raises:
        ServiceUnavailable: no upstream may be asked.
        BackendUnavailable: none of those asked accepted.
    """
    member, upstream = await _connect(session, pool, scope, target, headers, sticky)
    member.active += 1
    try:
        await receive()  # websocket.connect; left to the gatekeeper until nothing can fail
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol})
        await _relay(receive, send, upstream)
    finally:
        member.active -= 1
        await upstream.close(code=_GOING_AWAY)


async def _connect(
    session: aiohttp.ClientSession,
    pool: Pool,
    scope: Scope,
    target: str,
    headers: list[tuple[str, str]],
    sticky: str | None,
) -> tuple[Member, _UpstreamSocket]:
    tried: list[Member] = []
    while len(tried) <= pool.route.retries:
        member = pool.pick(sticky, tried)
        if member is None:
            break
        tried.append(member)
        judged = False
        try:
            async with asyncio.timeout(pool.route.timeouts.first_byte):
                upstream = await session.ws_connect(
                    URL(member.upstream.url + target, encoded=True),
                    protocols=scope.get("subprotocols", ()),
                    headers=headers,
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    heartbeat=_HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
            member.breaker.succeed()
            judged = True
            return member, upstream
        except aiohttp.WSServerHandshakeError as error:
            if error.status not in TRY_ELSEWHERE or not pool.has_another(tried):
                # The service itself said no: another upstream would say the same.
                raise BackendUnavailable(
                    f"the service {pool.route.name!r} refused the WebSocket ({error.status})"
                ) from error
            member.breaker.fail()
            judged = True
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            member.breaker.fail()
            judged = True
            _log.warning(
                "route %s: upstream %s: %s",
                pool.route.name,
                member.upstream.url,
                type(error).__name__,
            )
        finally:
            if not judged:
                member.breaker.abandon()
    if not tried:
        raise pool.nobody()
    raise BackendUnavailable(
        f"the service {pool.route.name!r} could not be reached", retry_after=RETRY_AFTER_SECONDS
    )


async def _relay(receive: Receive, send: Send, upstream: _UpstreamSocket) -> None:
    """Run both directions; the end of one is the end of the other."""
    up = asyncio.create_task(_from_client(receive, upstream))
    down = asyncio.create_task(_from_upstream(send, upstream))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        ends = await asyncio.gather(up, down, return_exceptions=True)
    for end in ends:
        # A connection that broke has been the end; anything else is a mistake of ours.
        if isinstance(end, Exception) and not isinstance(end, aiohttp.ClientError | OSError):
            raise end


async def _from_client(receive: Receive, upstream: _UpstreamSocket) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or _GOING_AWAY
            await upstream.close(code=_GOING_AWAY if code in _UNSENDABLE else code)
            return
        text = message.get("text")
        if text is not None:
            await upstream.send_str(text)
        else:
            await upstream.send_bytes(message["bytes"])


async def _from_upstream(send: Send, upstream: _UpstreamSocket) -> None:
    while True:
        message = await upstream.receive()
        if message.type is WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            code = upstream.close_code
            if message.type is WSMsgType.ERROR or code is None or code in _UNSENDABLE:
                code = _UPSTREAM_FAILED if code != 1005 else 1000
            reason = message.extra if message.type is WSMsgType.CLOSE else None
            await send({"type": "websocket.close", "code": code, "reason": reason or ""})
            return
