"""Serves the model calls of all protocols in plain ASGI, because they are the hot path."""

from __future__ import annotations

from deployments.models.routes.deferral import Deferral, asks_for_a_job
from deployments.models.routes.sending import JSON, read_body, send_answer, send_body
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.authorization import admission_of
from moyin.domain.backend import ApiFormat
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.protocol.ollama.codec import ParsedChatRequest, ParsedGenerateRequest
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.router import Router

__all__ = ["CallRoute", "OllamaRoute"]


class CallRoute:
    """Serves the model calls of one protocol.

    The gatekeeper renders errors that occur before the first byte. It also cancels the task when the
    client disconnects, which closes the stream and the call to the back end.
    """

    def __init__(self, codec: ProtocolCodec, text_router: Router, deferral: Deferral) -> None:
        self._codec = codec
        self._text_router = text_router
        self._deferral = deferral

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        call = self._codec.parse(body)
        if asks_for_a_job(scope["headers"]):
            await self._deferral(self._codec, call, scope, send)
        else:
            await self.answer(call, scope, send)

    async def answer(self, call: ParsedRequest, scope: Scope, send: Send) -> None:
        """Route the call to a model and send its answer."""
        await send_answer(await self._route(call, scope), send)

    async def _route(self, call: ParsedRequest, scope: Scope) -> Answer:
        request_context = context(scope)
        caller = request_context.caller
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=caller.owner,
            headers=scope["headers"],
            budget=admission_of(scope),
            key_id=caller.key_id,
        )
        return await self._text_router.answer(self._codec, call, routing_context)


class OllamaRoute(CallRoute):
    """Serves Ollama's calls. Requests that only load a model succeed at once if no Ollama serves it."""

    async def answer(self, call: ParsedRequest, scope: Scope, send: Send) -> None:
        loaded = (
            call.model_load_response
            if isinstance(call, ParsedChatRequest | ParsedGenerateRequest)
            else None
        )
        fleet, owner = self._text_router.fleet, context(scope).owner
        deployments = (
            fleet.find_allowed_deployments(call.model, owner) if loaded is not None else ()
        )
        # If the tenant may not use the model, the router reports the usual error.
        if (
            loaded is None
            or not deployments
            or any(deployment.api_format is ApiFormat.OLLAMA for deployment in deployments)
        ):
            await super().answer(call, scope, send)
        else:
            await send_body(send, 200, [JSON], loaded)
