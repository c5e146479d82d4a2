"""An HTTP server that speaks Ollama's wire format and generates through llama.cpp.

It is not Ollama: it stands in where no Ollama can be installed, so that the ``ollama`` SDK and our
adapter talk to another process over real HTTP and get what a real model generates. It knows
``/api/version`` and ``/api/chat`` (text and streams), as Ollama's ``api/types.go`` describes them.
It keeps the requests that it got, for a test to look at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

__all__ = ["OllamaBridge"]

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "seed": "seed",
    "stop": "stop",
}


class OllamaBridge:
    """Args:
    upstream: OpenAI base URL of the llama.cpp server.
    key: its API key.
    """

    def __init__(self, upstream: str, key: str) -> None:
        self._upstream = upstream
        self._headers = {"authorization": f"Bearer {key}"}
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.cut = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OllamaBridge]:
        """Serve on a free port of the loopback, which ``url`` then names."""
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/chat", self._chat)
        # Without it aiohttp would not cancel a handler whose client has left.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(headers=self._headers) as self._session:
            yield self
            await runner.cleanup()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.0-bridge"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        if asked.get("stream", True):
            return await self._stream(request, asked)
        async with self._session.post(self._url, json=_body(asked, stream=False)) as response:
            answer = await response.json()
            if response.status != 200:
                return web.json_response({"error": answer["error"]["message"]}, status=400)
        choice = answer["choices"][0]
        said = {"role": "assistant", "content": choice["message"]["content"]}
        return web.json_response(
            _final(asked["model"], choice["finish_reason"], answer["usage"]) | {"message": said}
        )

    @property
    def _url(self) -> str:
        return f"{self._upstream}/chat/completions"

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        out = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await out.prepare(request)
        reason = "stop"
        usage: dict[str, Any] = {}
        try:
            async with self._session.post(self._url, json=_body(asked, stream=True)) as response:
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage", usage)
                    for choice in chunk["choices"]:
                        reason = choice["finish_reason"] or reason
                        if text := choice["delta"].get("content"):
                            await out.write(_line(asked["model"], text))
            final = _final(asked["model"], reason, usage)
            await out.write(json.dumps(final).encode() + b"\n")
        except (asyncio.CancelledError, ConnectionError):
            self.cut.set()
            raise
        return out


def _body(asked: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    options = asked.get("options", {})
    given = {ours: options[theirs] for theirs, ours in _OPTIONS.items() if theirs in options}
    body = {"model": asked["model"], "messages": asked["messages"], "stream": stream, **given}
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


def _line(model: str, text: str) -> bytes:
    said = {"role": "assistant", "content": text}
    return json.dumps({"model": model, "message": said, "done": False}).encode() + b"\n"


def _final(model: str, reason: str, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": reason,
        "prompt_eval_count": usage.get("prompt_tokens", 0),
        "eval_count": usage.get("completion_tokens", 0),
    }
