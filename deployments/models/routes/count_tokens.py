"""Serves ``POST /v1/messages/count_tokens``, which counts the tokens of a prompt free of charge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from moyin.access.gatekeeper import context
from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.schemas import check_schemas
from moyin.errors import BackendRejected, MoyinError, UnsupportedFeature
from moyin.text.protocol.anthropic.codec import AnthropicCodec, ParsedCountTokensRequest
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.compiled_route import RouteTarget
from moyin.text.routing.router import Router

__all__ = ["count_routes"]

_PATH = "/messages/count_tokens"
_TIMEOUT_SECONDS = 10.0


def count_routes(text_router: Router) -> APIRouter:
    """Return the route that counts tokens."""
    router = APIRouter(tags=["text"])

    @router.post(_PATH, summary="Count the tokens of a prompt")
    async def count_tokens(request: Request) -> Response:
        """Count a prompt's tokens by a back end of the model that can (Claude, llama.cpp). Otherwise
        estimate them from the length of the text and set the header `x-moyin-estimated`."""
        call = ParsedCountTokensRequest.parse(await request.body())
        headers = AnthropicCodec().select_forwarded_headers(request.scope["headers"])
        request_context = context(request.scope)
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=request_context.owner,
            headers=request.scope["headers"],
        )
        allowed = text_router.list_allowed_targets(
            call.body.model, ApiFormat.ANTHROPIC, routing_context
        )
        count = await _count(allowed, call, headers)
        if count is not None:
            return Response(count, media_type="application/json")
        estimate = to_json({"input_tokens": call.derive_needs().prompt_tokens})
        estimated = {"x-moyin-estimated": "true"}
        return Response(estimate, media_type="application/json", headers=estimated)

    return router


async def _count(
    allowed: Iterable[RouteTarget], call: ParsedCountTokensRequest, headers: dict[str, str]
) -> bytes | None:
    """Return the response of the first back end that can count; None if there is none.

    Back ends inside our network are skipped if the prompt contains URLs: they would fetch them, and
    could so be made to call internal addresses.

    Raises:
        BackendRejected: the prompt is invalid.
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
            deadline=asyncio.get_running_loop().time() + _TIMEOUT_SECONDS,
        )
        try:
            return await runtime.pass_through.forward(raw)
        except BackendRejected:
            raise
        except MoyinError:
            continue
    return None


def _is_bounded(call: ParsedCountTokensRequest) -> bool:
    """Tell whether the schemas are small enough for servers that compile them to grammars."""
    try:
        check_schemas(call.iterate_schemas())
    except UnsupportedFeature:
        return False
    return True
