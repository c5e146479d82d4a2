"""Serves ``POST /v1/messages/count_tokens``, which counts a prompt's tokens free of charge."""

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

_PATH = "/messages/count_tokens"
_TIMEOUT_SECONDS = 10.0


def new_count_tokens_routes(text_router: Router) -> APIRouter:
    """Return the route that counts the tokens of a prompt."""
    router = APIRouter(tags=["text"])

    @router.post(_PATH, summary="Count the tokens of a prompt")
    async def count_tokens(request: Request) -> Response:
        """Return the number of tokens. If no back end can count, it is an estimate.

        The header `x-moyin-estimated` marks an estimate.
        """
        call = ParsedCountTokensRequest.parse(await request.body())
        headers = AnthropicCodec().select_forwarded_headers(request.scope["headers"])
        request_context = context(request.scope)
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=request_context.owner,
            headers=request.scope["headers"],
        )
        allowed_targets = text_router.list_allowed_targets(
            call.body.model, ApiFormat.ANTHROPIC, routing_context
        )
        count_body = await _count_by_back_end(allowed_targets, call, headers)
        if count_body is not None:
            return Response(count_body, media_type="application/json")
        estimate_body = to_json({"input_tokens": call.derive_needs().prompt_tokens})
        estimate_headers = {"x-moyin-estimated": "true"}
        return Response(estimate_body, media_type="application/json", headers=estimate_headers)

    return router


async def _count_by_back_end(
    allowed_targets: Iterable[RouteTarget], call: ParsedCountTokensRequest, headers: dict[str, str]
) -> bytes | None:
    """Return the response body of the first back end that can count tokens; None if none can.

    Servers inside our network do not get prompts with picture URLs, because they would fetch these
    URLs, which can be internal addresses.

    Args:
        headers: the request headers that are sent to the back end with the prompt.
    """
    has_urls = call.has_urls
    for target in allowed_targets:
        runtime = target.runtime
        if runtime.pass_through is None or not runtime.pass_through.can_count_tokens:
            continue
        if has_urls and not runtime.backend.fetches_pictures:
            continue
        if runtime.checks_schemas and not _has_small_schemas(call):
            continue
        raw_request = RawRequest(
            path=_PATH,
            body=call.to_upstream(target.model.upstream),
            headers=headers,
            deadline=asyncio.get_running_loop().time() + _TIMEOUT_SECONDS,
        )
        try:
            return await runtime.pass_through.forward(raw_request)
        except BackendRejected:
            raise
        except MoyinError:
            continue
    return None


def _has_small_schemas(call: ParsedCountTokensRequest) -> bool:
    """Return True if all schemas are small enough for servers that compile schemas to grammars."""
    try:
        check_schemas(call.iterate_schemas())
    except UnsupportedFeature:
        return False
    return True
