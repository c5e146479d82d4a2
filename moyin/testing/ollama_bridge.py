"""Provides an HTTP server with Ollama's API that generates text through llama.cpp.

Tests use the server where Ollama cannot be installed, so that the ``ollama`` SDK and Moyin's
adapter receive the output of a real model over HTTP. The server implements ``/api/version`` and
``/api/chat``, with and without streaming, in the format of Ollama's ``api/types.go``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "seed": "seed",
    "stop": "stop",
}


class OllamaBridge:
    """An HTTP server with Ollama's API that forwards chats to a llama.cpp server.

    Args:
        upstream: OpenAI base URL of the llama.cpp server.
        key: API key of the llama.cpp server.

    Attributes:
        url: URL of this server while it is running.
        requests: bodies of the received chats.
        cut: event that is set when a client has disconnected from a stream.
    """

    def __init__(self, upstream: str, key: str) -> None:
        self._upstream = upstream
        self._headers = {"authorization": f"Bearer {key}"}
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.cut = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OllamaBridge]:
        """Serve on a free port of 127.0.0.1 until the block ends; ``url`` has the address."""
        app = web.Application()
        app.router.add_get("/api/version", self._get_version)
        app.router.add_post("/api/chat", self._handle_chat)
        # handler_cancellation makes aiohttp cancel the handler of a client that disconnects.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(headers=self._headers) as self._session:
            yield self
            await runner.cleanup()

    async def _get_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.0-bridge"})

    async def _handle_chat(self, request: web.Request) -> web.StreamResponse:
        chat = await request.json()
        self.requests.append(chat)
        if chat.get("stream", True):
            return await self._stream_chat(request, chat)
        async with self._session.post(
            self._url, json=_build_request_body(chat, stream=False)
        ) as response:
            completion = await response.json()
            if response.status != 200:
                return web.json_response({"error": completion["error"]["message"]}, status=400)
        choice = completion["choices"][0]
        message = {"role": "assistant", "content": choice["message"]["content"]}
        final_message = _build_final_message(
            chat["model"], choice["finish_reason"], completion["usage"]
        )
        return web.json_response(final_message | {"message": message})

    @property
    def _url(self) -> str:
        return f"{self._upstream}/chat/completions"

    async def _stream_chat(self, request: web.Request, chat: dict[str, Any]) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await stream.prepare(request)
        reason = "stop"
        usage: dict[str, Any] = {}
        try:
            async with self._session.post(
                self._url, json=_build_request_body(chat, stream=True)
            ) as response:
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage", usage)
                    for choice in chunk["choices"]:
                        reason = choice["finish_reason"] or reason
                        if text := choice["delta"].get("content"):
                            await stream.write(_encode_line(chat["model"], text))
            final_message = _build_final_message(chat["model"], reason, usage)
            await stream.write(json.dumps(final_message).encode() + b"\n")
        except (asyncio.CancelledError, ConnectionError):
            self.cut.set()
            raise
        return stream


def _build_request_body(chat: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    options = chat.get("options", {})
    parameters = {
        openai: options[ollama] for ollama, openai in _OPTIONS.items() if ollama in options
    }
    body = {"model": chat["model"], "messages": chat["messages"], "stream": stream, **parameters}
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


def _encode_line(model: str, text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": model, "message": message, "done": False}).encode() + b"\n"


def _build_final_message(model: str, reason: str, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": reason,
        "prompt_eval_count": usage.get("prompt_tokens", 0),
        "eval_count": usage.get("completion_tokens", 0),
    }
