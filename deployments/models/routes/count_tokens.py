"""``POST /v1/messages/count_tokens``: how long a prompt is. Costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from moyin.access.gatekeeper import context
from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.schemas import check_schemas
from moyin.errors import BackendRejected, MoyinError, UnsupportedFeature
from moyin.text.protocol.anthropic.codec import AnthropicCodec, ParsedCountRequest
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.compiled_route import EligibleDeployment
from moyin.text.routing.router import Router

__all__ = ["count_routes"]

_PATH = "/messages/count_tokens"
_SECONDS = 10.0


def count_routes(text_router: Router) -> APIRouter:
    router = APIRouter(tags=["text"])

    @router.post(_PATH, summary="Tokens of a prompt")
    async def count_tokens(request: Request) -> Response:
        """Counted by a back end that knows how (Claude, llama.cpp), where the model has one; else
        estimated from the text's length, which the header `x-moyin-estimated` then says."""
        call = ParsedCountRequest.parse(await request.body())
        headers = AnthropicCodec().forwarded_headers(request.scope["headers"])
        asked = context(request.scope)
        routing_context = RoutingContext(
            request_id=asked.request_id, owner=asked.owner, headers=request.scope["headers"]
        )
        allowed = text_router.allowed_targets(call.body.model, ApiFormat.ANTHROPIC, routing_context)
        counted = await _counted(allowed, call, headers)
        if counted is not None:
            return Response(counted, media_type="application/json")
        estimate = to_json({"input_tokens": call.needs().prompt_tokens})
        told = {"x-moyin-estimated": "true"}
        return Response(estimate, media_type="application/json", headers=told)

    return router


async def _counted(
    allowed: Iterable[EligibleDeployment], call: ParsedCountRequest, headers: dict[str, str]
) -> bytes | None:
    """The answer of the first back end that counts; None where none does. One inside our network
    would call any address that the prompt names, so it is not asked then.

    Raises:
        BackendRejected: the prompt is wrong.
    """
    has_urls = call.has_urls
    for target in allowed:
        runtime = target.runtime
        if runtime.pass_through is None or not runtime.pass_through.can_count_tokens:
            continue
        if has_urls and not runtime.backend.fetches_pictures:
            continue
        if runtime.checks_schemas and not _is_bounded(call):
            continue
        raw = RawRequest(
            path=_PATH,
            body=call.to_upstream(target.model.upstream),
            headers=headers,
            deadline=asyncio.get_running_loop().time() + _SECONDS,
        )
        try:
            return await runtime.pass_through.forward(raw)
        except BackendRejected:
            raise
        except MoyinError:
            continue
    return None


def _is_bounded(call: ParsedCountRequest) -> bool:
    """Whether a server that makes grammars of JSON schemas may be sent its schemas."""
    try:
        check_schemas(call.schemas())
    except UnsupportedFeature:
        return False
    return True
