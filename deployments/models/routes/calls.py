"""Serves the model calls of all protocols in plain ASGI, which is faster than FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import cast

from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.authorization import get_admission
from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.identity import OPERATOR, Identity
from moyin.http.headers import prefers_async_response
from moyin.store.usage import UsageEntry
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.protocol.ollama.codec import ParsedChatRequest, ParsedGenerateRequest
from moyin.text.protocol.ollama.response import rename_model
from moyin.text.routing.answer import Answer, AnswerStream, RoutingContext
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.router import Router

_JSON = (b"content-type", b"application/json")
_UNLOAD_SECONDS = 30.0
_RECORD_USAGE = "moyin.record_usage"


def set_background(scope: Scope, record_usage: Callable[[UsageEntry], None]) -> None:
    """Mark a request as a background call: all other requests have priority over it.

    Args:
        record_usage: called with the usage of the call in place of the ledger.
    """
    scope[_RECORD_USAGE] = record_usage


def is_background(scope: Scope) -> bool:
    """Return True if `set_background` has marked the request, which is then a line of a batch."""
    return _RECORD_USAGE in scope


class CallRoute:
    """Handles the requests of one kind of model call, as an ASGI app.

    The gatekeeper renders errors that occur before the first byte. It also cancels the task when
    the client disconnects, which closes the stream and the call to the back end.
    """

    def __init__(
        self, codec: ProtocolCodec, text_router: Router, job_submitter: JobSubmitter
    ) -> None:
        self.codec = codec
        self._text_router = text_router
        self._job_submitter = job_submitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        call = await self.parse(body, scope)
        call_with_files = await self.embed_files(call, scope)
        if prefers_async_response(scope["headers"]):
            headers, job_body = await self._job_submitter.submit(
                self.codec, call, scope, call_with_files=call_with_files
            )
            await _send_body(send, 202, [_JSON, *headers], job_body)
        else:
            await self.answer_call(call_with_files, scope, receive, send)

    async def parse(self, body: bytes, scope: Scope) -> ParsedRequest:
        """Parse and validate the client's request."""
        return self.codec.parse(body)

    async def embed_files(self, call: ParsedRequest, scope: Scope) -> ParsedRequest:
        """Return ``call`` with the content of the stored files that it references.

        This class embeds no files. If the client wants a job, the job gets the original call, and
        its files are read again when the job runs.
        """
        return call

    async def answer_call(
        self, call: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the call to a model that the router chooses, and the answer to the client."""
        await send_answer(await self.fetch_answer(call, scope), send)

    async def fetch_answer(
        self, call: ParsedRequest, scope: Scope, codec: ProtocolCodec | None = None
    ) -> Answer:
        """Return the answer of a model that the router chooses.

        Args:
            codec: replaces the route's codec.
        """
        request_context = context(scope)
        caller = request_context.caller
        record_usage = scope.get(_RECORD_USAGE)
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=caller.owner,
            headers=scope["headers"],
            budget=get_admission(scope),
            key_id=caller.key_id,
            is_background=record_usage is not None,
            record_usage=record_usage,
        )
        return await self._text_router.answer(codec or self.codec, call, routing_context)


class OllamaRoute(CallRoute):
    """Handles Ollama's calls, whose answers name the model as the client did.

    A request to load a model succeeds immediately if servers other than Ollama also serve the
    model. A request to unload a model goes to every host that has the model in memory. Only
    operators can unload all models of an alias or of ``auto``; the same request of another caller
    succeeds without an effect.
    """

    async def answer_call(
        self, call: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = None
        if isinstance(call, ParsedChatRequest | ParsedGenerateRequest):
            response = call.model_load_response
        if response is None or not await self._load_or_unload(call, context(scope).caller):
            await super().answer_call(call, scope, receive, send)
        else:
            await _send_body(send, 200, [_JSON], response)

    async def fetch_answer(
        self, call: ParsedRequest, scope: Scope, codec: ProtocolCodec | None = None
    ) -> Answer:
        answer = await super().fetch_answer(call, scope, codec)
        if answer.stream is None:
            answer.body = rename_model(answer.body, call.model)
        return answer

    async def _load_or_unload(self, call: ParsedRequest, caller: Identity) -> bool:
        """Load or unload the named model; return False if the call must still go to a back end."""
        fleet = self._text_router.fleet
        deployments = fleet.find_allowed_deployments(call.model, caller.owner)
        host_deployments = [
            deployment for deployment in deployments if deployment.api_format is ApiFormat.OLLAMA
        ]
        body = cast(ParsedChatRequest | ParsedGenerateRequest, call).body
        if not body.unloads_model:
            # If other servers than Ollama hosts also have the model, it need not be loaded. If the
            # tenant may not use the model, the router raises the error.
            return len(host_deployments) < len(deployments)
        if fleet.catalog.is_group_name(call.model) and not caller.has_scope(OPERATOR):
            # Other tenants use the models behind the name, too.
            return bool(deployments)
        runtime_pairs = [
            (fleet.runtimes[host.backend], host.model.upstream) for host in host_deployments
        ]
        loaded_pairs = [pair for pair in runtime_pairs if pair[0].has_loaded(pair[1])]
        deadline = asyncio.get_running_loop().time() + _UNLOAD_SECONDS
        errors = await asyncio.gather(
            *(
                self._unload_model(call, runtime, upstream_model, deadline)
                for runtime, upstream_model in loaded_pairs
            ),
            return_exceptions=True,
        )
        for error in errors:
            if error is not None:
                raise error
        return bool(loaded_pairs) or len(host_deployments) < len(deployments)

    async def _unload_model(
        self, call: ParsedRequest, runtime: BackendRuntime, upstream_model: str, deadline: float
    ) -> None:
        request = RawRequest(
            path=self.codec.path,
            body=call.to_upstream(upstream_model, {}, {"stream": False}),
            headers={},
            deadline=deadline,
        )
        assert runtime.pass_through is not None, "an Ollama host accepts Ollama's requests"
        await runtime.pass_through.forward(request)
        if runtime.loaded is not None:
            await runtime.loaded.refresh()


async def read_body(receive: Receive) -> bytes | None:
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
    length_header = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, length_header]}
    )
    await send({"type": "http.response.body", "body": body})


async def _send_stream(answer: Answer, stream: AnswerStream, send: Send) -> None:
    async with aclosing(stream):
        await send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
