"""Reads request bodies and sends answers as ASGI messages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

from moyin.access.gatekeeper.asgi import Receive, Send
from moyin.text.routing.answer import Answer, AnswerStream

__all__ = ["JSON", "read_body", "send_answer", "send_body"]

JSON = (b"content-type", b"application/json")


async def read_body(receive: Receive) -> bytes | None:
    """Return the whole body; None if the client disconnected before its end."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def send_answer(answer: Answer, send: Send) -> None:
    """Send an answer whole, or as a stream."""
    if answer.stream is not None:
        await _send_stream(answer, answer.stream, send)
    else:
        await send_body(send, 200, answer.headers, answer.body)


async def send_body(
    send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(answer: Answer, stream: AnswerStream, send: Send) -> None:
    async with aclosing(stream):
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
