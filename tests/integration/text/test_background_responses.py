"""Tests that ``background: true`` turns a call of the Responses API into a durable job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.stack import RunningStack
from tests.waiting import eventually_blocking

MODEL = "smollm2-135m"


@pytest.fixture
def client(gateway: RunningStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=gateway.api_key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as client:
        yield client


def test_background_response_is_polled_continued_and_deleted(
    client: openai.OpenAI,
) -> None:
    first_response = client.responses.create(
        model=MODEL, input="Say ${steps.0.text}.", max_output_tokens=4, background=True
    )
    assert (first_response.status, first_response.background, first_response.output) == (
        "queued",
        True,
        [],
    )
    ended_response = _wait_for_end(client, first_response.id)
    assert ended_response.status in ("completed", "incomplete") and ended_response.output_text
    assert client.responses.retrieve(first_response.id) == ended_response
    second_response = client.responses.create(
        model=MODEL,
        input="And now?",
        max_output_tokens=4,
        background=True,
        previous_response_id=first_response.id,
    )
    second_response = _wait_for_end(client, second_response.id)
    assert second_response.previous_response_id == first_response.id
    assert second_response.usage is not None and ended_response.usage is not None
    assert second_response.usage.input_tokens > ended_response.usage.input_tokens, (
        "it has read the first turn"
    )
    third_response = client.responses.create(
        model=MODEL, input="?", max_output_tokens=4, previous_response_id=second_response.id
    )
    assert (
        third_response.usage is not None
        and third_response.usage.input_tokens > second_response.usage.input_tokens
    )
    reference: Any = {"type": "item_reference", "id": ended_response.output[0].id}
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "?"}]}
    next_response = client.responses.create(
        model=MODEL, input=[reference, question], max_output_tokens=4
    )
    items = client.responses.input_items.list(next_response.id, order="asc").data
    assert items[0].id == ended_response.output[0].id
    client.responses.delete(first_response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first_response.id)


def test_a_stream_is_resumed_after_any_event(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL, input="Say hello.", max_output_tokens=4, background=True, stream=True
        )
    )
    sequence_numbers = [event.sequence_number for event in events]
    assert sequence_numbers == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    first_event, last_event = events[0], events[-1]
    assert first_event.type == "response.created" and first_event.response.status == "queued"
    assert last_event.type in ("response.completed", "response.incomplete")
    response = client.responses.retrieve(first_event.response.id)
    assert response == last_event.response
    for event_number in (0, 2, len(events) - 2):
        resumed_events = client.responses.retrieve(
            response.id, stream=True, starting_after=event_number
        )
        assert list(resumed_events) == events[event_number + 1 :]
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.responses.retrieve(response.id, extra_query={"starting_after": 1})
    assert exc_info.value.param == "starting_after"


def test_a_response_is_cancelled_and_cannot_be_continued(client: openai.OpenAI) -> None:
    running_response = client.responses.create(
        model=MODEL, input="Count to 100000.", max_output_tokens=4000, background=True
    )
    cancelled_response = client.responses.cancel(running_response.id)
    assert cancelled_response.status == "cancelled"
    assert client.responses.cancel(running_response.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled") as exc_info:
        client.responses.create(model=MODEL, input="?", previous_response_id=running_response.id)
    assert exc_info.value.param == "previous_response_id"


def test_repeated_request_with_an_idempotency_key_returns_the_same_response(
    client: openai.OpenAI,
) -> None:
    request: dict[str, Any] = {"model": MODEL, "max_output_tokens": 4, "background": True}
    key_headers = {"idempotency-key": "one-response"}
    first_response = client.responses.create(**request, input="hi", extra_headers=key_headers)
    ended_response = _wait_for_end(client, first_response.id)
    repeated_response = client.responses.create(**request, input="hi", extra_headers=key_headers)
    assert repeated_response == ended_response
    with pytest.raises(openai.APIStatusError) as exc_info:
        client.responses.create(**request, input="ho", extra_headers=key_headers)
    assert exc_info.value.code == "idempotency_key_reused"


def test_deletion_cancels_the_job(client: openai.OpenAI, gateway: RunningStack) -> None:
    running_response = client.responses.create(
        model=MODEL, input="Count to 100000.", max_output_tokens=4000, background=True
    )
    client.responses.delete(running_response.id)
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {gateway.api_key}"}
    ) as http:
        [job, *_] = http.get("/jobs", params={"kind": "chat", "limit": 1}).json()["jobs"]
        assert running_response.id == "resp_" + job["id"]
        eventually_blocking(lambda: _read_job_status(http, job["id"]) == "cancelled", 180)


def test_invalid_background_requests_are_refused(client: openai.OpenAI) -> None:
    wrong_requests: dict[str, dict[str, Any]] = {
        "store": {"store": False},
        "model": {"model": "gpt-2"},
        "previous_response_id": {"previous_response_id": "resp_none"},
    }
    for field, members in wrong_requests.items():
        request: dict[str, Any] = {"model": MODEL, "input": "hi", "background": True, **members}
        with pytest.raises(openai.APIStatusError) as exc_info:
            client.responses.create(**request)
        assert exc_info.value.status_code in (400, 404), field
        if field != "model":
            assert exc_info.value.param == field
    foreground_response = client.responses.create(model=MODEL, input="hi", max_output_tokens=4)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(foreground_response.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(foreground_response.id, stream=True)


def test_a_deferred_continuation_has_the_conversation_once(
    client: openai.OpenAI, gateway: RunningStack
) -> None:
    first_response = client.responses.create(
        model=MODEL, input="My name is Ada.", max_output_tokens=4
    )
    request: dict[str, Any] = {"model": MODEL, "input": "And now?"}
    request |= {"max_output_tokens": 4, "previous_response_id": first_response.id}
    direct_response = httpx.post(
        f"{gateway.url}/v1/responses", json=request, headers=_build_headers(gateway)
    )
    prefer_headers = _build_headers(gateway) | {"prefer": "respond-async"}
    deferred_response = httpx.post(
        f"{gateway.url}/v1/responses", json=request, headers=prefer_headers
    )
    assert deferred_response.status_code == 202, deferred_response.text
    with httpx.Client(base_url=gateway.url, headers=_build_headers(gateway)) as http:
        job_id = deferred_response.json()["id"]
        eventually_blocking(lambda: _read_job_status(http, job_id) == "succeeded", 180)
        [output] = http.get(f"/jobs/{job_id}").json()["outputs"]
    expected_tokens = direct_response.json()["usage"]["input_tokens"]
    assert output["body"]["usage"]["input_tokens"] == expected_tokens


def _build_headers(gateway: RunningStack) -> dict[str, str]:
    return {"authorization": f"Bearer {gateway.api_key}"}


def _read_job_status(http: httpx.Client, job_id: str) -> str:
    return str(http.get(f"/jobs/{job_id}").json()["status"])


def _wait_for_end(client: openai.OpenAI, response_id: str) -> Response:
    def find_ended_response() -> Response | None:
        shown_response = client.responses.retrieve(response_id)
        return None if shown_response.status in ("queued", "in_progress") else shown_response

    result: Response = eventually_blocking(find_ended_response, 180)
    return result
