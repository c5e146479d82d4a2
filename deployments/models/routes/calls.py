"""A call of any protocol over HTTP, in plain ASGI: this is the hot path."""

from __future__ import annotations

from contextlib import aclosing

from moyin.gatekeeper import context
from moyin.gatekeeper.asgi import Receive, Scope, Send
from moyin.protocols.dialect import Dialect
from moyin.routing.attempt import Answer, Asker, LiveStream
from moyin.routing.dispatch import Dispatcher

__all__ = ["CallRoute"]


class CallRoute:
    """Answers one protocol's calls.

    Errors before the first byte are the gatekeeper's to render; it also cancels the task when the
    client leaves, which closes the stream and with it the call upstream.
    """

    def __init__(self, dialect: Dialect, dispatcher: Dispatcher) -> None:
        self._dialect = dialect
        self._dispatcher = dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            return
        call = self._dialect.parse(body)
        asked = context(scope)
        asker = Asker(request_id=asked.request_id, owner=asked.owner, headers=scope["headers"])
        answer = await self._dispatcher.answer(self._dialect, call, asker)
        await _send(answer, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _send(answer: Answer, send: Send) -> None:
    if answer.stream is not None:
        await _send_stream(answer, answer.stream, send)
        return
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*answer.headers, length]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _send_stream(answer: Answer, stream: LiveStream, send: Send) -> None:
    async with aclosing(stream):
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        async for piece in stream:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
