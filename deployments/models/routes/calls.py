"""Serves the model calls of all protocols in plain ASGI, which is faster than FastAPI."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.authorization import get_admission
from moyin.domain.backend import ApiFormat
from moyin.http.headers import prefers_async_response
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.protocol.ollama.codec import ParsedChatRequest, ParsedGenerateRequest
from moyin.text.routing.answer import Answer, AnswerStream, RoutingContext
from moyin.text.routing.router import Router

_JSON = (b"content-type", b"application/json")


class CallRoute:
    """Handles the requests of one kind of model call, as an ASGI app.

    The gatekeeper renders errors that occur before the first byte. It also cancels the task when
    the client disconnects, which closes the stream and the call to the back end.
    """

    def __init__(
        self, codec: ProtocolCodec, text_router: Router, job_submitter: JobSubmitter
    ) -> None:
        self._codec = codec
        self._text_router = text_router
        self._job_submitter = job_submitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        if body is None:
            return
        call = await self.parse(body, scope)
        if prefers_async_response(scope["headers"]):
            headers, job = await self._job_submitter.submit(self._codec, call, scope)
            await _send_body(send, 202, [_JSON, *headers], job)
        else:
            await self.answer_call(call, scope, receive, send)

    async def parse(self, body: bytes, scope: Scope) -> ParsedRequest:
        """Parse and validate the client's request."""
        return self._codec.parse(body)

    async def answer_call(
        self, call: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the call to a model that the router chooses, and send the answer to the client."""
        await send_answer(await self.fetch_answer(call, scope), send)

    async def fetch_answer(
        self, call: ParsedRequest, scope: Scope, codec: ProtocolCodec | None = None
    ) -> Answer:
        """Return the answer of a model that the router chooses; ``codec`` replaces the route's."""
        request_context = context(scope)
        caller = request_context.caller
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=caller.owner,
            headers=scope["headers"],
            budget=get_admission(scope),
            key_id=caller.key_id,
        )
        return await self._text_router.answer(codec or self._codec, call, routing_context)


class OllamaRoute(CallRoute):
    """Handles Ollama's calls; a request to load a model succeeds at once if no Ollama serves it."""

    async def answer_call(
        self, call: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        loaded = (
            call.model_load_response
            if isinstance(call, ParsedChatRequest | ParsedGenerateRequest)
            else None
        )
        fleet, owner = self._text_router.fleet, context(scope).owner
        deployments = (
            fleet.find_allowed_deployments(call.model, owner) if loaded is not None else ()
        )
        # The router raises the error for a model that the tenant may not use.
        if (
            loaded is None
            or not deployments
            or any(deployment.api_format is ApiFormat.OLLAMA for deployment in deployments)
        ):
            await super().answer_call(call, scope, receive, send)
        else:
            await _send_body(send, 200, [_JSON], loaded)


async def _read_body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if the client disconnects while sending it."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def send_answer(answer: Answer, send: Send) -> None:
    if answer.stream is not None:
        await _send_stream(answer, answer.stream, send)
    else:
        await _send_body(send, 200, answer.headers, answer.body)


async def _send_body(
    send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(answer: Answer, stream: AnswerStream, send: Send) -> None:
    async with aclosing(stream):
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
