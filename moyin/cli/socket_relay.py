"""Two ends of one WebSocket conversation, joined."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import WSMsgType, web

__all__ = ["MAX_MESSAGE_BYTES", "relay"]

# A message is held whole while it crosses; pictures come as messages, too.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NORMAL, _GOING_AWAY = 1000, 1001
# Codes that may not be sent (RFC 6455, section 7.4.1).
_UNSENDABLE = frozenset({1004, 1005, 1006, 1015})
_End = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def relay(client: web.WebSocketResponse, door: aiohttp.ClientWebSocketResponse) -> None:
    """Pass messages both ways until one end closes, and close the other in the same way."""
    pumps = [asyncio.create_task(_pump(client, door)), asyncio.create_task(_pump(door, client))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        ends = await asyncio.gather(*pumps, return_exceptions=True)
    for end in ends:
        # A connection that broke has been the end; anything else is a mistake of ours.
        if isinstance(end, Exception) and not isinstance(end, aiohttp.ClientError | OSError):
            raise end


async def _pump(source: _End, target: _End) -> None:
    while True:
        message = await source.receive()
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
        else:
            reason = message.extra if message.type is WSMsgType.CLOSE else None
            code = source.close_code
            if code is None or code in _UNSENDABLE:
                code = _NORMAL if code == 1005 else _GOING_AWAY
            await target.close(code=code, message=(reason or "").encode())
            return
