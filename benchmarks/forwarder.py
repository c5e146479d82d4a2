"""Implements a minimal gateway in Python: an ASGI app that forwards all requests with aiohttp.

Moyin is compared with it. The environment variable ``UPSTREAM`` is the URL of the server to which
it forwards. Run it with ``uvicorn benchmarks.forwarder:app --port 9001``.
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp


class Forwarder:
    """Forwards every body to ``upstream`` and streams the response back."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        assert self._session is not None
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        url, headers = self._upstream + scope["path"], {"content-type": "application/json"}
        async with self._session.post(url, data=body, headers=headers) as response:
            media_type = response.headers.get("content-type", "application/json").encode()
            start_members = {"status": response.status, "headers": [(b"content-type", media_type)]}
            await send({"type": "http.response.start", **start_members})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _run_lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


app = Forwarder(os.environ.get("UPSTREAM", "http://127.0.0.1:9000"))
