"""Relays the messages of a WebSocket between a client and the gateway."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import WSMsgType, web

__all__ = ["MAX_MESSAGE_BYTES", "relay"]

# Each message is held in memory as a whole; previews and pictures are messages too.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NORMAL, _GOING_AWAY = 1000, 1001
# Codes that may not be sent (RFC 6455, section 7.4.1).
_RESERVED_CODES = frozenset({1004, 1005, 1006, 1015})
_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def relay(client: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse) -> None:
    """Relay messages in both directions until one end closes; close the other with its code."""
    pumps = [
        asyncio.create_task(_pump(client, upstream)),
        asyncio.create_task(_pump(upstream, client)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        results = await asyncio.gather(*pumps, return_exceptions=True)
    for result in results:
        # A broken connection is a normal end; any other exception is a bug.
        if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError | OSError):
            raise result


async def _pump(source: _Socket, target: _Socket) -> None:
    while True:
        message = await source.receive()
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
        else:
            reason = message.extra if message.type is WSMsgType.CLOSE else None
            code = source.close_code
            if code is None or code in _RESERVED_CODES:
                code = _NORMAL if code == 1005 else _GOING_AWAY
            await target.close(code=code, message=(reason or "").encode())
            return
