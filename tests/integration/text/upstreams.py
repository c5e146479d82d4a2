"""Faulty model servers on raw sockets, which can send any malformed response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
BEGUN = {
    "openai": SSE + 'data: {"id":"1","model":"m","choices":[{"delta":{"content":"Hi"}}]}\n\n',
    "anthropic": (
        SSE
        + 'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message",'
        '"role":"assistant","content":[],"model":"m","usage":{"input_tokens":3,"output_tokens":1}}}'
        '\n\nevent: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hi"}}\n\n'
    ),
    "ollama": SSE + '{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}\n',
}
KINDS = sorted(BEGUN)
_ANSWER = (
    '{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop",'
    '"message":{"role":"assistant","content":"Hi"}}],'
    '"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)
# A whole OpenAI answer.
FINE = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(_ANSWER)}\r\n\r\n{_ANSWER}"


class Upstream:
    """Answers every POST with the same bytes and closes the connection; health checks get 200.

    ``later`` is sent after a pause, so that it arrives separately.

    Attributes:
        answer: the bytes, which a test may change; None to wait without a response.
        holds: True to keep the connection open after ``answer`` until the client closes it.
        left: set when a client has closed the connection before the server did.
    """

    def __init__(self, answer: str | None, later: str = "", *, holds: bool = False) -> None:
        self.answer = answer
        self.later = later
        self.holds = holds
        self.request_count = 0
        self.url = ""
        self.left = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve_connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        else:
            self.request_count += 1
            if self.answer is not None:
                writer.write(self.answer.encode())
            if self.answer is None or self.holds:
                while await reader.read(65_536):
                    pass
                self.left.set()
            elif self.later:
                await asyncio.sleep(0.1)
                writer.write(self.later.encode())
        await writer.drain()
        writer.close()


def build_backend_config(kind: str, url: str, **kwargs: Any) -> dict[str, Any]:
    """Return the configuration of a back end of this kind, with one model and without retries.

    The model's name is ``m-<kind>``.

    Args:
        kwargs: further members of the configuration.
    """
    connections: dict[str, dict[str, Any]] = {
        "openai": {"base_url": f"{url}/v1"},
        "anthropic": {"base_url": url, "api_key_env": "LLAMA_KEY"},
        "ollama": {"hosts": [url]},
    }
    model: dict[str, Any] = {"name": f"m-{kind}", "upstream": "m", "context": 8000}
    model["price"] = {"input": 1, "output": 1}
    return {
        "name": kind,
        "type": kind,
        "models": [model],
        "retries": 0,
        **connections[kind],
        **kwargs,
    }
