"""The least that any Python gateway does: one raw ASGI app, one aiohttp session, no decisions.

UPSTREAM=http://127.0.0.1:9000 uvicorn benchmarks.forwarder:app --port 9001
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp

_UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:9000")
_sessions: list[aiohttp.ClientSession] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Forward the body, hand back what comes."""
    if scope["type"] == "lifespan":
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        _sessions.append(aiohttp.ClientSession(connector=connector, auto_decompress=False))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _sessions.pop().close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = {"content-type": "application/json"}
    async with _sessions[0].post(_UPSTREAM + scope["path"], data=body, headers=headers) as answer:
        kind = answer.headers.get("content-type", "application/json").encode()
        start = {"status": answer.status, "headers": [(b"content-type", kind)]}
        await send({"type": "http.response.start", **start})
        async for chunk in answer.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
