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
    build_first_events,
    build_last_events,
    build_start_event,
    has_ended,
    is_pending,
    render_job,
    require_storable,
    to_job_request,
)
from moyin.text.protocol.responses.codec import ParsedResponseRequest, ResponsesCodec
from tests.unit.text.protocol.conversations import ANSWERS, SCHEMA

CODEC = ResponsesCodec()
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", "name": "weather", "parameters": SCHEMA}]


def parse(*earlier: dict[str, Any], **members: Any) -> ParsedResponseRequest:
    data = {"model": "m", "input": "hi", "background": True, "tools": TOOLS, **members}
    return CODEC.parse_continuation(to_json(data), data, earlier)


def make_succeeded_job(request: ParsedResponseRequest, answer: ChatResponse) -> dict[str, Any]:
    """Return a succeeded job of ``request`` whose step got ``answer``."""
    inner = CODEC.parse(to_json(to_job_request(request)))
    assert inner.body.store is False and not inner.body.background
    return {
        "status": "succeeded",
        "error": None,
        "outputs": [{"body": json.loads(inner.encode_response(answer))}],
    }


def texts_by_item(events: Iterable[tuple[str, dict[str, Any]]], kind: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, members in events:
        if name == f"response.{kind}.delta":
            texts[members["item_id"]] = texts.get(members["item_id"], "") + members["delta"]
    return texts


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_replaces_the_queued_response_and_its_events_are_valid(name: str) -> None:
    request = parse(metadata={"a": "b"})
    queued = request.render_queued("resp_1")
    Response.model_validate_json(to_json(queued), strict=True)
    assert is_pending(queued) and not has_ended(queued)
    final = render_job(queued, make_succeeded_job(request, ANSWERS[name]))
    Response.model_validate_json(to_json(final), strict=True)
    assert has_ended(final) and not is_pending(final)
    assert (final["id"], final["background"], final["store"]) == ("resp_1", True, True)
    ids = [item["id"].split("_")[1:] for item in final["output"]]
    assert ids == [["1", str(number)] for number in range(len(ids))], "they name the response"
    assert final["metadata"] == {"a": "b"} and final["usage"]["output_tokens"] > 0
    events = [*build_first_events(queued), build_start_event(queued), *build_last_events(final)]
    for number, (kind, members) in enumerate(events):
        event = {"type": kind, "sequence_number": number, **members}
        EVENTS.validate_json(to_json(event), strict=True)
    assert [kind for kind, _ in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[-1] == (f"response.{final['status']}", {"response": final})
    done = [members["item"] for kind, members in events if kind == "response.output_item.done"]
    assert done == final["output"]
    texts = texts_by_item(events, "output_text")
    assert texts == {
        item["id"]: "".join(part["text"] for part in item["content"])
        for item in final["output"]
        if item["type"] == "message" and item["content"][0]["type"] == "output_text"
    }


def test_events_before_the_answer_are_those_of_a_later_reader() -> None:
    request = parse()
    queued = request.render_queued("resp_1")
    final = render_job(queued, make_succeeded_job(request, ANSWERS["text"]))
    [(_, early), _], [(_, late), _] = build_first_events(queued), build_first_events(final)
    assert early["response"] | {"model": ""} == late["response"] | {"model": ""}


def test_a_job_carries_the_conversation_and_is_not_stored_again() -> None:
    earlier = {"type": "message", "role": "user", "content": "before"}
    request = parse(earlier, previous_response_id="resp_0", include=[])
    job = to_job_request(request)
    assert [item["content"] for item in job["input"][:1]] == ["before"]
    assert len(job["input"]) == 2 and len(request.own_items) == 1
    assert job["store"] is False and job["include"] == ["reasoning.encrypted_content"]
    assert not job.keys() & {"background", "previous_response_id"}
    assert request.render_queued("resp_1")["previous_response_id"] == "resp_0"


@pytest.mark.parametrize(
    ("job", "status", "code"),
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
    job: dict[str, Any], status: str, code: str | None
) -> None:
    shown = render_job(parse().render_queued("resp_1"), job)
    Response.model_validate_json(to_json(shown), strict=True)
    assert shown["status"] == status
    assert (shown["error"] or {}).get("code") == code
    if has_ended(shown):
        *_, (kind, members) = build_last_events(shown)
        assert (kind, members["response"]["status"]) == ("response.failed", status)


def make_failed_job(answer: str) -> dict[str, Any]:
    """Return a failed job whose call got status 400 and this answer from the gateway."""
    message = "POST /v1/responses answered with status 400"
    details = {"status": 400, "answer": answer, "step": 0}
    return {
        "status": "failed",
        "error": {"code": "step_failed", "message": message, "details": details},
    }


@pytest.mark.parametrize("length", [10, 5_000])
def test_a_failed_response_shows_the_error_of_its_call(length: int) -> None:
    error = BackendRejected("The prompt is bad: " + "x" * length, field="input.0")
    answer = CODEC.render_error(error, "r", "/v1/responses").body.decode()[:2_000]
    shown = render_job(parse().render_queued("resp_1"), make_failed_job(answer))
    Response.model_validate_json(to_json(shown), strict=True)
    assert shown["status"] == "failed"
    assert ": The prompt is bad: xxx" in shown["error"]["message"]
    if length == 10:
        assert shown["error"] == {
            "code": "invalid_prompt",
            "message": f"backend_rejected: {error.message}",
            "type": "invalid_request_error",
            "param": "input.0",
        }


@pytest.mark.parametrize("answer", ["", "<html>", "[]", "{}", '{"error": "x"}', '{"error": {"me'])
def test_a_failure_without_the_error_of_its_call_shows_that_of_the_job(answer: str) -> None:
    shown = render_job(parse().render_queued("resp_1"), make_failed_job(answer))
    message = "step_failed: POST /v1/responses answered with status 400"
    assert shown["error"] == {"code": "server_error", "message": message}


def test_a_response_in_the_background_must_be_stored() -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        require_storable(parse(store=False))
    assert exc_info.value.field == "store"
