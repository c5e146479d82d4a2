"""Runs a fast mock model server, so that measurements show the time of the gateway alone.

It implements just enough HTTP/1.1 for POST requests on keep-alive connections. Every response is
the same OpenAI chat completion, or the same stream if the body asks for one. The model ``paced``
streams fifty tokens a second instead.

    python -m benchmarks.mock PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

from benchmarks import paced

_ID = {"id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": "mock"}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
_TEXT = "The quick brown fox jumps over the lazy dog. "
_WHOLE = json.dumps(
    {
        **_ID,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT},
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
).encode()


def _new_chunk(**members: object) -> bytes:
    body = {**_ID, "object": "chat.completion.chunk", **members}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


_STREAM = b"".join(
    [
        *(
            _new_chunk(
                choices=[{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]
            )
            for word in _TEXT.split()
        ),
        _new_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        _new_chunk(choices=[], usage=_USAGE),
        b"data: [DONE]\n\n",
    ]
)


def _build_response(content_type: bytes, body: bytes) -> bytes:
    header_template = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return header_template % (content_type, len(body)) + body


_WHOLE_RESPONSE = _build_response(b"application/json", _WHOLE)
_PACED = f'"{paced.MODEL}"'.encode()
_STREAM_RESPONSE = _build_response(b"text/event-stream", _STREAM)


class _Connection(asyncio.Protocol):
    """Serves one keep-alive connection; Content-Length delimits the requests."""

    def __init__(self, pacer: paced.Pacer) -> None:
        self._pacer = pacer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement Transport without deriving from it.
        self._transport = cast(asyncio.Transport, transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (request_body := self._take_next_body()) is not None:
            if _PACED in request_body:
                self._pacer.start_stream(self._transport, request_body)
                continue
            wants_stream = b'"stream": true' in request_body or b'"stream":true' in request_body
            self._transport.write(_STREAM_RESPONSE if wants_stream else _WHOLE_RESPONSE)

    def _take_next_body(self) -> bytes | None:
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return None
        content_length = 0
        for header in head.lower().split(b"\r\n"):
            if header.startswith(b"content-length:"):
                content_length = int(header[15:])
        if len(body) < content_length:
            return None
        self._received = body[content_length:]
        return body[:content_length]


async def _serve(port: int) -> None:
    pacer = paced.Pacer()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(pacer), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
