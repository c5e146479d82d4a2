"""Relays the messages of a WebSocket between the client and an upstream."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.errors import BackendUnavailable
from moyin.proxy.pool import RETRY_AFTER_SECONDS, RETRYABLE_STATUSES, PoolMember, UpstreamPool

_log = logging.getLogger(__name__)
# Each message is buffered in memory as a whole.
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_HEARTBEAT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
_GOING_AWAY = 1001
_UPSTREAM_FAILED = 1011
# Close codes that an endpoint must not send (RFC 6455, section 7.4.1).
_UNSENDABLE = frozenset({1004, 1005, 1006, 1015})
_UpstreamSocket = aiohttp.ClientWebSocketResponse


async def relay_websocket(
    session: aiohttp.ClientSession,
    pool: UpstreamPool,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    upstream_path: str,
    headers: list[tuple[str, str]],
    sticky_value: str | None,
) -> None:
    """Connect to an upstream, accept the client, and relay messages until either side closes.

    Args:
        upstream_path: the path and query that are appended to the upstream's URL.
        headers: the headers that the upstream receives.
        sticky_value: the header value that ties the client to one upstream, if any.

    Raises:
        ServiceUnavailable: the route has no healthy upstream.
        BackendUnavailable: no upstream accepted the WebSocket.
    """
    member, upstream = await _connect_upstream(
        session, pool, scope, upstream_path, headers, sticky_value
    )
    member.active += 1
    try:
        # Only now read `websocket.connect`: before, the gatekeeper could still send an HTTP error.
        await receive()
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol})
        await _relay_messages(receive, send, upstream)
    finally:
        member.active -= 1
        await upstream.close(code=_GOING_AWAY)


async def _connect_upstream(
    session: aiohttp.ClientSession,
    pool: UpstreamPool,
    scope: Scope,
    upstream_path: str,
    headers: list[tuple[str, str]],
    sticky_value: str | None,
) -> tuple[PoolMember, _UpstreamSocket]:
    """Open a WebSocket to a member of the pool, and try other members if that fails.

    Args:
        upstream_path: the path and query that are appended to the upstream's URL.
        headers: the headers that the upstream receives.
        sticky_value: the header value that ties the client to one upstream, if any.

    Returns:
        The member that accepted the WebSocket, and the open WebSocket.
    """
    tried_members: list[PoolMember] = []
    while len(tried_members) <= pool.route.retries:
        member = pool.pick_member(sticky_value, tried_members)
        if member is None:
            break
        tried_members.append(member)
        try:
            async with asyncio.timeout(pool.route.timeouts.first_byte):
                upstream = await session.ws_connect(
                    URL(member.upstream.url + upstream_path, encoded=True),
                    protocols=scope.get("subprotocols", ()),
                    headers=headers,
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    heartbeat=_HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status not in RETRYABLE_STATUSES or not pool.can_retry(tried_members):
                member.breaker.abandon()
                # The service itself rejected the handshake, so another upstream would do the same.
                raise BackendUnavailable(
                    f"the service {pool.route.name!r} rejected the WebSocket: status {error.status}; "
                    "check the path and the credentials"
                ) from error
            member.breaker.fail()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            member.breaker.fail()
            _log.warning(
                "route %s: the upstream %s did not accept a WebSocket: %s",
                pool.route.name, member.upstream.url, type(error).__name__,
            )  # fmt: skip
        except BaseException:
            member.breaker.abandon()
            raise
        else:
            member.breaker.succeed()
            return member, upstream
    if not tried_members:
        raise pool.new_unavailable_error()
    raise BackendUnavailable(
        f"the service {pool.route.name!r} could not be reached; try again",
        retry_after=RETRY_AFTER_SECONDS,
    )


async def _relay_messages(receive: Receive, send: Send, upstream: _UpstreamSocket) -> None:
    """Relay messages in both directions until the client or the upstream closes."""
    upstream_task = asyncio.create_task(_relay_to_upstream(receive, upstream))
    client_task = asyncio.create_task(_relay_to_client(send, upstream))
    try:
        await asyncio.wait({upstream_task, client_task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (upstream_task, client_task):
            task.cancel()
        results = await asyncio.gather(upstream_task, client_task, return_exceptions=True)
    for result in results:
        # A lost connection is expected; any other exception is a bug.
        if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError | OSError):
            raise result


async def _relay_to_upstream(receive: Receive, upstream: _UpstreamSocket) -> None:
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


async def _relay_to_client(send: Send, upstream: _UpstreamSocket) -> None:
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
