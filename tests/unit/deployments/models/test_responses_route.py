from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from openai.pagination import SyncCursorPage
from openai.types.responses import ResponseItem
from pydantic_core import to_json
from sqlalchemy.exc import OperationalError

from deployments.models.routes.calls import set_background
from deployments.models.routes.responses import (
    ResponsesRoute,
    _AnswerSavingStream,
    _assign_item_ids,
    _translate_storage_errors,
)
from moyin.access.gatekeeper import RequestContext
from moyin.access.gatekeeper.asgi import Message, Scope
from moyin.domain.identity import Identity
from moyin.domain.money import Usage
from moyin.errors import MoyinError, ServiceUnavailable
from moyin.store.stored_responses import StoredResponse
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.responses.codec import ParsedResponseRequest
from moyin.text.routing.answer import Answer


async def _generate_pieces() -> AsyncGenerator[bytes, None]:
    yield b'data: {"id":"resp_1"}\n\n'
    yield b"data: last\n\n"


async def test_answer_that_cannot_be_stored_ends_with_an_error_event() -> None:
    saved_ids: list[str | None] = []

    async def save(response_id: str | None) -> bool:
        saved_ids.append(response_id)
        if len(saved_ids) < 2:
            return False
        with _translate_storage_errors():
            raise OperationalError("INSERT", {}, Exception("the database is away"))

    def render(error: MoyinError) -> bytes:
        return error.code.encode()

    stream = _AnswerSavingStream(cast(Any, _generate_pieces()), save, render)
    assert [piece async for piece in stream] == [
        b'data: {"id":"resp_1"}\n\n',
        b"service_unavailable",
    ]
    assert saved_ids == ["resp_1", "resp_1"]


def test_each_item_of_the_input_has_an_id_of_its_own() -> None:
    input_items: list[dict[str, Any]] = [
        {"id": "msg_1"},
        {"n": 1},
        {"id": "msg_1", "n": 2},
        {"id": None},
        {"id": "msg_2"},
    ]
    stored_response = StoredResponse(
        id="resp_7", owner="ada", previous=None, input=input_items, response={}, proofs={}
    )
    named_items = _assign_item_ids(stored_response)
    ids = [item["id"] for item in named_items]
    assert ids == ["msg_1", "item_1_resp_7", "item_2_resp_7", "item_3_resp_7", "msg_2"]
    assert [item.get("n") for item in named_items] == [None, 1, 2, None, None]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_messages_of_the_input_have_lists_of_parts(role: str) -> None:
    input_items: list[dict[str, Any]] = [{"type": "message", "role": role, "content": "hi"}]
    stored_response = StoredResponse(
        id="resp_7", owner="ada", previous=None, input=input_items, response={}, proofs={}
    )
    page_body = to_json({"data": _assign_item_ids(stored_response), "object": "list"})
    page = SyncCursorPage[ResponseItem].model_validate_json(page_body, strict=True)
    [message] = page.model_dump()["data"]
    assert message["content"][0]["text"] == "hi"


def test_database_errors_tell_clients_to_try_again(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceUnavailable) as exc_info, _translate_storage_errors():
        raise OperationalError("SELECT", {"input": "secret prompt"}, Exception("away"))
    assert exc_info.value.retry_after
    assert "secret" not in exc_info.value.message + caplog.text


class _FakeRouter:
    """A fake router that answers every request."""

    async def answer(self, codec: ProtocolCodec, call: ParsedResponseRequest, _: object) -> Answer:
        response = {"id": "resp_7", "object": "response"}
        call.record.add(response, {})
        return Answer(headers=(), body=to_json(response), usage=Usage())


class _UnavailableStore:
    async def add(self, response: StoredResponse) -> None:
        raise OperationalError("INSERT", {}, Exception("the database is away"))


@pytest.mark.parametrize("is_batch_line", [False, True])
async def test_only_a_batchs_answer_is_sent_without_being_stored(is_batch_line: bool) -> None:
    unused_dependency = cast(Any, None)
    route = ResponsesRoute(
        cast(Any, _FakeRouter()),
        unused_dependency,
        cast(Any, _UnavailableStore()),
        unused_dependency,
        unused_dependency,
    )
    identity = Identity(owner="ada", key_id="k")
    scope: Scope = {"headers": [], "moyin": RequestContext(request_id="r", identity=identity)}
    if is_batch_line:
        set_background(scope, lambda entry: None)
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"model":"m","input":"hi"}'}

    async def send(message: Message) -> None:
        messages.append(message)

    if is_batch_line:
        await route(scope, receive, send)
        assert b"resp_7" in messages[-1]["body"]
    else:
        with pytest.raises(ServiceUnavailable):
            await route(scope, receive, send)
