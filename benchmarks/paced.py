"""Streams the mock server's answers at fifty tokens a second, each with the time it was sent."""

from __future__ import annotations

import asyncio
import json
import re
import time

MODEL = "paced"
TOKENS_PER_SECOND = 50
# The streams' tokens are spread over the interval, because those of real models do not coincide.
_SLOTS = 10
_TICK = 1 / TOKENS_PER_SECOND / _SLOTS
_LIMIT = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_ID = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _new_event(**choice: object) -> bytes:
    return b"data: " + json.dumps({**_ID, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


_TOKEN = _new_event(delta={"content": "%d "}, finish_reason=None)
_END = _new_event(delta={}, finish_reason="stop") + b"data: [DONE]\n\n"


def _to_http_chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


class Pacer:
    """Writes the tokens of all open streams of one event loop."""

    def __init__(self) -> None:
        self._slots: list[dict[asyncio.Transport, int]] = [{} for _ in range(_SLOTS)]
        self._joined = 0
        self._due = 0.0

    def start_stream(self, transport: asyncio.Transport, request: bytes) -> None:
        """Start a stream to ``transport`` with as many tokens as the body of ``request`` allows."""
        limit_match = _LIMIT.search(request)
        transport.write(_HEAD)
        self._slots[self._joined % _SLOTS][transport] = int(limit_match[1]) if limit_match else 100
        self._joined += 1
        if not self._due:
            self._due = time.monotonic()
            asyncio.get_running_loop().call_soon(self._write_tokens, 0)

    def _write_tokens(self, number: int) -> None:
        slot = self._slots[number % _SLOTS]
        token = _to_http_chunk(_TOKEN % time.monotonic_ns())
        for transport, remaining_tokens in list(slot.items()):
            if transport.is_closing():
                del slot[transport]
            elif remaining_tokens:
                transport.write(token)
                slot[transport] = remaining_tokens - 1
            else:
                transport.write(_to_http_chunk(_END) + b"0\r\n\r\n")
                del slot[transport]
        if any(self._slots):
            self._due += _TICK
            delay = max(0.0, self._due - time.monotonic())
            asyncio.get_running_loop().call_later(delay, self._write_tokens, number + 1)
        else:
            self._due = 0.0
