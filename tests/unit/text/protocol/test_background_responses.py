from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from pydantic_core import to_json

from moyin.domain.chat import ChatResponse
from moyin.errors import BackendRejected, InvalidRequest
from moyin.text.protocol.responses.background import (
    add_job_status,
    build_first_events,
    build_last_events,
    build_start_event,
    has_ended,
    is_pending,
    require_storable,
    to_job_request,
)
from moyin.text.protocol.responses.codec import ParsedResponseRequest, ResponsesCodec
from tests.unit.text.protocol.conversations import ANSWERS, SCHEMA

CODEC = ResponsesCodec()
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", "name": "weather", "parameters": SCHEMA}]


def parse_request(*earlier_items: dict[str, Any], **members: Any) -> ParsedResponseRequest:
    body = {"model": "m", "input": "hi", "background": True, "tools": TOOLS, **members}
    return CODEC.parse_continuation(to_json(body), body, earlier_items)


def make_succeeded_job(request: ParsedResponseRequest, answer: ChatResponse) -> dict[str, Any]:
    """Return a succeeded job for ``request``, whose only step returned the model's ``answer``."""
    job_request = CODEC.parse(to_json(to_job_request(request)))
    assert job_request.body.store is False and not job_request.body.background
    return {
        "status": "succeeded",
        "error": None,
        "outputs": [{"body": json.loads(job_request.encode_response(answer))}],
    }


def collect_texts(events: Iterable[tuple[str, dict[str, Any]]], item_kind: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, members in events:
        if name == f"response.{item_kind}.delta":
            texts[members["item_id"]] = texts.get(members["item_id"], "") + members["delta"]
    return texts


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_replaces_the_queued_response_and_its_events_are_valid(name: str) -> None:
    request = parse_request(metadata={"a": "b"})
    queued_response = request.render_queued("resp_1")
    Response.model_validate_json(to_json(queued_response), strict=True)
    assert is_pending(queued_response) and not has_ended(queued_response)
    final_response = add_job_status(queued_response, make_succeeded_job(request, ANSWERS[name]))
    Response.model_validate_json(to_json(final_response), strict=True)
    assert has_ended(final_response) and not is_pending(final_response)
    assert (final_response["id"], final_response["background"], final_response["store"]) == (
        "resp_1",
        True,
        True,
    )
    id_parts = [item["id"].split("_")[1:] for item in final_response["output"]]
    assert id_parts == [["1", str(number)] for number in range(len(id_parts))], (
        "they name the response"
    )
    assert final_response["metadata"] == {"a": "b"} and final_response["usage"]["output_tokens"] > 0
    events = [
        *build_first_events(queued_response),
        build_start_event(queued_response),
        *build_last_events(final_response),
    ]
    for number, (event_type, members) in enumerate(events):
        event = {"type": event_type, "sequence_number": number, **members}
        EVENTS.validate_json(to_json(event), strict=True)
    assert [event_type for event_type, _ in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[-1] == (f"response.{final_response['status']}", {"response": final_response})
    finished_items = [
        members["item"]
        for event_type, members in events
        if event_type == "response.output_item.done"
    ]
    assert finished_items == final_response["output"]
    texts = collect_texts(events, "output_text")
    assert texts == {
        item["id"]: "".join(part["text"] for part in item["content"])
        for item in final_response["output"]
        if item["type"] == "message" and item["content"][0]["type"] == "output_text"
    }


def test_first_events_are_the_same_for_a_later_reader() -> None:
    request = parse_request()
    queued_response = request.render_queued("resp_1")
    final_response = add_job_status(queued_response, make_succeeded_job(request, ANSWERS["text"]))
    [(_, early_event), _], [(_, late_event), _] = (
        build_first_events(queued_response),
        build_first_events(final_response),
    )
    assert early_event["response"] | {"model": ""} == late_event["response"] | {"model": ""}


def test_a_job_carries_the_conversation_and_is_not_stored_again() -> None:
    earlier_item = {"type": "message", "role": "user", "content": "before"}
    request = parse_request(earlier_item, previous_response_id="resp_0", include=[])
    job = to_job_request(request)
    assert [item["content"] for item in job["input"][:1]] == ["before"]
    assert len(job["input"]) == 2 and len(request.own_items) == 1
    assert job["store"] is False and job["include"] == ["reasoning.encrypted_content"]
    assert not job.keys() & {"background", "previous_response_id"}
    assert request.render_queued("resp_1")["previous_response_id"] == "resp_0"


@pytest.mark.parametrize(
    ("job", "status", "error_code"),
    [
        ({"status": "queued"}, "queued", None),
        ({"status": "running"}, "in_progress", None),
        ({"status": "cancelled"}, "cancelled", None),
        ({"status": "failed", "error": {"code": "overloaded", "message": "x"}}, "failed",
         "rate_limit_exceeded"),
        ({"status": "failed", "error": {"code": "backend_unavailable", "message": "x"}}, "failed",
         "server_error"),
    ],
)  # fmt: skip
def test_the_state_of_a_job_is_the_state_of_the_response(
    job: dict[str, Any], status: str, error_code: str | None
) -> None:
    shown_response = add_job_status(parse_request().render_queued("resp_1"), job)
    Response.model_validate_json(to_json(shown_response), strict=True)
    assert shown_response["status"] == status
    assert (shown_response["error"] or {}).get("code") == error_code
    if has_ended(shown_response):
        *_, (event_type, members) = build_last_events(shown_response)
        assert (event_type, members["response"]["status"]) == ("response.failed", status)


def make_failed_job(answer: str) -> dict[str, Any]:
    """Return a job whose call failed with status 400 and the body ``answer``."""
    message = "POST /v1/responses answered with status 400"
    details = {"status": 400, "answer": answer, "step": 0}
    return {
        "status": "failed",
        "error": {"code": "step_failed", "message": message, "details": details},
    }


@pytest.mark.parametrize("message_length", [10, 5_000])
def test_a_failed_response_shows_the_error_of_its_call(message_length: int) -> None:
    error = BackendRejected("The prompt is bad: " + "x" * message_length, field="input.0")
    answer = CODEC.render_error(error, "r", "/v1/responses").body.decode()[:2_000]
    shown_response = add_job_status(
        parse_request().render_queued("resp_1"), make_failed_job(answer)
    )
    Response.model_validate_json(to_json(shown_response), strict=True)
    assert shown_response["status"] == "failed"
    assert ": The prompt is bad: xxx" in shown_response["error"]["message"]
    if message_length == 10:
        assert shown_response["error"] == {
            "code": "invalid_prompt",
            "message": f"backend_rejected: {error.message}",
            "type": "invalid_request_error",
            "param": "input.0",
        }


@pytest.mark.parametrize("answer", ["", "<html>", "[]", "{}", '{"error": "x"}', '{"error": {"me'])
def test_a_failure_without_the_error_of_its_call_shows_that_of_the_job(answer: str) -> None:
    shown_response = add_job_status(
        parse_request().render_queued("resp_1"), make_failed_job(answer)
    )
    message = "step_failed: POST /v1/responses answered with status 400"
    assert shown_response["error"] == {"code": "server_error", "message": message}


def test_a_response_in_the_background_must_be_stored() -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        require_storable(parse_request(store=False))
    assert exc_info.value.field == "store"
