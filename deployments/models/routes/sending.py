"""Answers as ASGI messages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

from moyin.access.gatekeeper.asgi import Receive, Send
from moyin.text.routing.answer import Answer, Stream

__all__ = ["JSON", "read_body", "send_answer", "send_body"]

JSON = (b"content-type", b"application/json")


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def send_answer(answer: Answer, send: Send) -> None:
    """Whole, or piece by piece as they come."""
    if answer.stream is not None:
        await _send_stream(answer, answer.stream, send)
    else:
        await send_body(send, 200, answer.headers, answer.body)


async def send_body(
    send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(answer: Answer, stream: Stream, send: Send) -> None:
    async with aclosing(stream):
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        async for piece in stream:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
