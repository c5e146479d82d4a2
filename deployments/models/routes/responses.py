"""Serves the Responses API: answers, and stored answers that later requests continue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from deployments.models.routes.calls import CallRoute, send_answer
from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Scope, Send
from moyin.domain.money import Usage
from moyin.errors import (
    InvalidRequest,
    PreviousResponseNotFound,
    ResponseNotFound,
    UnsupportedFeature,
)
from moyin.http.validation import parse_object
from moyin.store.stored_responses import StoredResponse, StoredResponses
from moyin.text.protocol.codec import ParsedRequest
from moyin.text.protocol.responses.codec import ParsedResponseRequest, ResponsesCodec
from moyin.text.routing.answer import AnswerStream
from moyin.text.routing.router import Router

_MAX_ITEMS = 100


class ResponsesRoute(CallRoute):
    """Serves ``POST /v1/responses``.

    An answer is stored before its client receives the last piece, so that the next request can
    continue it, whichever replica serves that.
    """

    def __init__(
        self, text_router: Router, job_submitter: JobSubmitter, stored: StoredResponses
    ) -> None:
        self._responses_codec = ResponsesCodec()
        super().__init__(self._responses_codec, text_router, job_submitter)
        self._stored = stored

    async def parse(self, body: bytes, scope: Scope) -> ParsedRequest:
        """Parse a request; with ``previous_response_id``, the conversation so far precedes it."""
        data = parse_object(body)
        previous = data.get("previous_response_id")
        earlier: Sequence[Mapping[str, Any]] = ()
        if isinstance(previous, str):
            try:
                earlier = await self._stored.list_items(context(scope).owner, previous)
            except ResponseNotFound as error:
                raise PreviousResponseNotFound(
                    error.message, field="previous_response_id"
                ) from None
        call = self._responses_codec.parse_continuation(body, data, earlier)
        if call.body.background:
            raise UnsupportedFeature(
                "background is not supported; send the header `Prefer: respond-async` instead",
                field="background",
            )
        return call

    async def answer_call(self, call: ParsedRequest, scope: Scope, send: Send) -> None:
        assert isinstance(call, ParsedResponseRequest)
        answer = await self.fetch_answer(call, scope)
        if call.body.store is not False:
            save = partial(self._save, call, context(scope).owner)
            if answer.stream is None:
                await save()
            else:
                answer = replace(answer, stream=_SavedStream(answer.stream, save))
        await send_answer(answer, send)

    async def _save(self, call: ParsedResponseRequest, owner: str) -> bool:
        """Store the answer once it is whole; return whether that is so."""
        record = call.record
        if (response := record.response) is None:
            return False
        await self._stored.add(
            StoredResponse(
                id=response["id"],
                owner=owner,
                previous=call.body.previous_response_id,
                input=call.own_items,
                response=response,
                proofs=record.proofs,
            )
        )
        return True


class _SavedStream:
    """Passes a stream on, and stores its answer before it passes the piece that ends it."""

    def __init__(self, stream: AnswerStream, save: Callable[[], Awaitable[bool]]) -> None:
        self._stream = stream
        self._save = save
        self._is_saved = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._stream)
        if not self._is_saved:
            self._is_saved = await self._save()
        return piece

    @property
    def final_usage(self) -> Usage | None:
        return self._stream.final_usage

    async def aclose(self) -> None:
        await self._stream.aclose()


def new_response_routes(stored: StoredResponses) -> APIRouter:
    """Return the routes of stored responses."""
    router = APIRouter(prefix="/responses", tags=["responses"])

    @router.get("/{response_id}", summary="Return a stored response")
    async def get_response(response_id: str, request: Request) -> Mapping[str, Any]:
        """Return one of your responses as it was answered; 404 `response_not_found` without it."""
        return (await stored.get(context(request.scope).owner, response_id)).response

    @router.delete("/{response_id}", summary="Delete a stored response")
    async def delete_response(response_id: str, request: Request) -> Mapping[str, Any]:
        """Delete a response. Responses that continue it cannot be continued any more."""
        await stored.delete(context(request.scope).owner, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get("/{response_id}/input_items", summary="List the input of a stored response")
    async def list_input_items(
        response_id: str,
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_ITEMS)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Mapping[str, Any]:
        """List the items of the request itself, without those of the responses that it continued."""
        found = await stored.get(context(request.scope).owner, response_id)
        items = [
            {"id": f"item_{number}_{response_id}", **item}
            for number, item in enumerate(found.input)
        ]
        if order == "desc":
            items.reverse()
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise InvalidRequest(
                    f"after: there is no item {after!r}: use the last_id of a page", field="after"
                )
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }

    return router
