"""Serves the Responses API: answers, and stored answers that later requests continue."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic_core import from_json, to_json
from sqlalchemy.exc import SQLAlchemyError

from deployments.event_stream import EventStreamResponse
from deployments.models.routes.background_responses import BackgroundResponses, require_ended
from deployments.models.routes.calls import CallRoute, is_background, send_answer
from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.domain.money import Usage
from moyin.errors import (
    InvalidRequest,
    MoyinError,
    PreviousResponseNotFound,
    ResponseNotFound,
    ServiceUnavailable,
)
from moyin.http.sse import FrameSplitter, parse_event
from moyin.http.validation import parse_object
from moyin.store.stored_responses import StoredResponse, StoredResponses
from moyin.text.prompt_files import FILE_ID_MARKER, PromptFiles, find_response_references
from moyin.text.protocol.codec import ParsedRequest
from moyin.text.protocol.documents import NO_FILES
from moyin.text.protocol.responses.codec import (
    ParsedResponseRequest,
    ResponsesCodec,
    find_response_id,
)
from moyin.text.protocol.responses.response import encode_text_part, new_id
from moyin.text.routing.answer import AnswerStream
from moyin.text.routing.router import Router

_log = logging.getLogger(__name__)
_MAX_ITEMS = 100
_MAX_REFERENCES = 1_000
_RESPONSE_ID = re.compile(r"resp_[0-9a-f-]{1,59}")
# An item's id contains its response's id (`ResponseTemplate.new_item_id`).
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f-]{32,36})_[0-9]{1,9}")


class ResponsesRoute(CallRoute):
    """Serves ``POST /v1/responses``.

    With ``background: true`` the client immediately gets a queued response, or a stream of its
    events.

    An answer is stored before the client receives its last piece, so that the next request can
    continue it in any replica.
    """

    def __init__(
        self,
        text_router: Router,
        job_submitter: JobSubmitter,
        stored_responses: StoredResponses,
        background_responses: BackgroundResponses,
        prompt_files: PromptFiles,
    ) -> None:
        self._responses_codec = ResponsesCodec()
        super().__init__(self._responses_codec, text_router, job_submitter)
        self._stored_responses = stored_responses
        self._background_responses = background_responses
        self._prompt_files = prompt_files

    async def parse(self, body: bytes, scope: Scope) -> ParsedRequest:
        """Parse a request, and prepend the conversation of its ``previous_response_id``.

        The parsed request has the content of the files that it references. Its JSON still has the
        files' ids, because a job that is made from the request sends this JSON again.
        """
        data = parse_object(body)
        with _translate_storage_errors():
            resolved_data = await self._resolve_references(data, context(scope).owner)
        if resolved_data is not data:
            data, body = resolved_data, to_json(resolved_data)
        files = NO_FILES
        owner = context(scope).owner
        if FILE_ID_MARKER in body:
            references = tuple(find_response_references(data.get("input")))
            files = await self._prompt_files.read(owner, references)
        previous_id = data.get("previous_response_id")
        if not isinstance(previous_id, str):
            return self._responses_codec.parse_continuation(body, data, (), files)
        # Errors in the client's own items are reported with the client's numbering.
        self._responses_codec.parse_continuation(body, data, (), files)
        try:
            if not _RESPONSE_ID.fullmatch(previous_id):
                raise ResponseNotFound("previous_response_id must be the id of a response, resp_…")
            with _translate_storage_errors():
                require_ended((await self._background_responses.get(scope, previous_id)).response)
                earlier_items = await self._stored_responses.list_items(owner, previous_id)
        except ResponseNotFound as error:
            raise PreviousResponseNotFound(error.message, field="previous_response_id") from None
        references = tuple(find_response_references(earlier_items, is_earlier=True))
        if references:
            references += tuple(find_response_references(data.get("input")))
            files = await self._prompt_files.read(owner, references)
        return self._responses_codec.parse_continuation(body, data, earlier_items, files)

    async def _resolve_references(self, data: dict[str, Any], owner: str) -> dict[str, Any]:
        """Return the request ``data`` with the items in place of references to stored items.

        The Vercel AI SDK sends such references.

        Raises:
            InvalidRequest: an item does not exist; the error names the field.
        """
        items = data.get("input")
        references = {
            number: item["id"]
            for number, item in enumerate(items if isinstance(items, list) else ())
            if isinstance(item, dict)
            and item.get("type") == "item_reference"
            and isinstance(item.get("id"), str)
        }
        if not references or not isinstance(items, list):
            return data
        id_matches = {item_id: _ITEM_ID.fullmatch(item_id) for item_id in references.values()}
        response_ids = {
            item_id: f"resp_{match[1]}" for item_id, match in id_matches.items() if match
        }
        if len(response_ids) > _MAX_REFERENCES:
            raise InvalidRequest(
                f"input: at most {_MAX_REFERENCES} items may be item_references", field="input"
            )
        found_items = await self._stored_responses.find_items(owner, response_ids)
        resolved_items = list(items)
        for number, item_id in references.items():
            if item_id not in found_items:
                raise InvalidRequest(
                    f"input.{number}.id: there is no stored item {item_id[:80]!r}; send the item "
                    "itself, as the Vercel AI SDK does with `store: false`",
                    field=f"input.{number}.id",
                )
            resolved_items[number] = found_items[item_id]
        return {**data, "input": resolved_items}

    async def answer_call(
        self, call: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        assert isinstance(call, ParsedResponseRequest)
        if call.body.background:
            stored_response = await self._background_responses.submit(call, scope)
            response: Response = (
                EventStreamResponse(self._background_responses.follow(scope, stored_response))
                if call.is_streamed
                else JSONResponse(stored_response.response)
            )
            await response(scope, receive, send)
            return
        answer = await self.fetch_answer(call, scope, ResponsesCodec(call.record))
        if not call.record.responses and answer.stream is None:
            answer = replace(answer, body=await self._renew_response_id(call, answer.body, scope))
        if call.body.store is not False:
            save_answer = partial(self._save_answer, call, context(scope).owner)
            if answer.stream is None:
                try:
                    await save_answer(find_response_id(answer.body))
                except ServiceUnavailable:
                    # The answer to a batch line is stored in a file, and another answer would cost
                    # again.
                    if not is_background(scope):
                        raise
            else:
                render_error = partial(
                    ResponsesCodec(call.record).render_error_event,
                    request_id=context(scope).request_id,
                )
                answer = replace(
                    answer, stream=_AnswerSavingStream(answer.stream, save_answer, render_error)
                )
        await send_answer(answer, send)

    async def _renew_response_id(
        self, call: ParsedResponseRequest, body: bytes, scope: Scope
    ) -> bytes:
        """Return a cached answer with a new response id, under which it will be stored, too.

        The cached answer has the id of an earlier response, which may have been deleted or never
        stored.

        Args:
            body: the cached body of the answer, which is a stream if the call is streamed.
        """
        if call.is_streamed:
            last_frame = [frame for frame in FrameSplitter().feed(body) if frame.data][-1]
            response = parse_event(last_frame)["response"]
        else:
            response = from_json(body)
        with _translate_storage_errors():
            stored_original = await self._stored_responses.find(
                context(scope).owner, response["id"]
            )
        old_part, new_part = (
            name.removeprefix("resp_") for name in (response["id"], new_id("resp"))
        )
        proofs = {} if stored_original is None else stored_original.proofs
        renewed_response = from_json(
            to_json(response).replace(old_part.encode(), new_part.encode())
        )
        call.record.add(
            renewed_response, {name.replace(old_part, new_part): p for name, p in proofs.items()}
        )
        return body.replace(old_part.encode(), new_part.encode())

    async def _save_answer(
        self, call: ParsedResponseRequest, owner: str, response_id: str | None
    ) -> bool:
        """Store the answer ``response_id``; return False if it is incomplete or the id is None."""
        response = call.record.responses.get(response_id or "")
        if response is None:
            return False
        stored_response = StoredResponse(
            id=response["id"],
            owner=owner,
            previous=call.body.previous_response_id,
            input=call.own_items,
            response=response,
            proofs=call.record.proofs,
        )
        with _translate_storage_errors():
            await self._stored_responses.add(stored_response)
        return True


@contextmanager
def _translate_storage_errors() -> Iterator[None]:
    """Raise ServiceUnavailable if the database fails in the ``with`` block."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        # The error's text contains the statement's parameters, which are prompts and answers.
        _log.warning("responses cannot be stored or read: %s", type(error).__name__)
        raise ServiceUnavailable(
            "the database is unavailable; try again, or send store: false", retry_after=1
        ) from error


class _AnswerSavingStream:
    """Forwards a stream, and stores the complete answer before it forwards the last piece.

    If the answer cannot be stored, an error event replaces the last piece.
    """

    def __init__(
        self,
        stream: AnswerStream,
        save_answer: Callable[[str | None], Awaitable[bool]],
        render_error: Callable[[MoyinError], bytes],
    ) -> None:
        self._stream = stream
        self._save_answer = save_answer
        self._render_error = render_error
        self._has_failed = False
        self._response_id: str | None = None
        self._is_saved = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._has_failed:
            raise StopAsyncIteration
        chunk = await anext(self._stream)
        if self._response_id is None:
            self._response_id = find_response_id(chunk)
        if not self._is_saved:
            try:
                self._is_saved = await self._save_answer(self._response_id)
            except ServiceUnavailable as error:
                self._has_failed = True
                return self._render_error(error)
        return chunk

    @property
    def final_usage(self) -> Usage | None:
        return self._stream.final_usage

    async def aclose(self) -> None:
        await self._stream.aclose()


def _assign_item_ids(stored_response: StoredResponse) -> list[Mapping[str, Any]]:
    """Return the input items of a stored response, each with a unique id.

    An item that the client sent without an id, or with the id of an earlier item, gets a new id.
    """
    items: list[Mapping[str, Any]] = []
    used_ids: set[str] = set()
    for number, item in enumerate(stored_response.input):
        item_id = item.get("id")
        if not isinstance(item_id, str) or item_id in used_ids:
            item_id = f"item_{number}_{stored_response.id}"
        used_ids.add(item_id)
        items.append({**_expand_content(item), "id": item_id})
    return items


def _expand_content(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message item with its string content converted to parts, as OpenAI requires."""
    content = item.get("content")
    if item.get("type") != "message" or not isinstance(content, str):
        return item
    if item["role"] == "assistant":
        return {"status": "completed", **item, "content": [encode_text_part(content)]}
    return {**item, "content": [{"type": "input_text", "text": content}]}


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def new_response_routes(
    stored_responses: StoredResponses, background_responses: BackgroundResponses
) -> APIRouter:
    """Return the routes of stored responses."""
    router = APIRouter(prefix="/responses", tags=["responses"])

    @router.get(
        "/{response_id}",
        summary="Return a stored response",
        response_model=dict[str, Any],
        responses=_STREAM,
    )
    async def get_response(
        response_id: str,
        request: Request,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """Return one of your responses; 404 `response_not_found` if there is none with this id.

        With `stream`, a response that runs in the background is returned as a stream of its events,
        beginning after the event number `starting_after`.
        """
        stored_response = await background_responses.get(request.scope, response_id)
        if not stream:
            if starting_after is not None:
                raise InvalidRequest("starting_after requires stream=true", field="starting_after")
            return JSONResponse(stored_response.response)
        if not stored_response.response["background"]:
            raise InvalidRequest(
                "only responses with background: true can be streamed again", field="stream"
            )
        after = -1 if starting_after is None else starting_after
        return EventStreamResponse(
            background_responses.follow(request.scope, stored_response, after)
        )

    @router.post("/{response_id}/cancel", summary="Cancel a response in the background")
    async def cancel_response(response_id: str, request: Request) -> Mapping[str, Any]:
        """Cancel a response that runs in the background. An ended response does not change."""
        return (await background_responses.cancel(request.scope, response_id)).response

    @router.delete("/{response_id}", summary="Delete a stored response")
    async def delete_response(response_id: str, request: Request) -> Mapping[str, Any]:
        """Delete a response, and cancel it if it is running. It cannot be continued afterwards."""
        await background_responses.delete(request.scope, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get("/{response_id}/input_items", summary="List the input of a stored response")
    async def list_input_items(
        response_id: str,
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_ITEMS)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Mapping[str, Any]:
        """List the input items of one request, without those of the responses that it continued."""
        stored_response = await stored_responses.get(context(request.scope).owner, response_id)
        items = _assign_item_ids(stored_response)
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
