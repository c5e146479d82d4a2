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


def test_a_response_is_polled_continued_and_its_job_is_not_stored_again(
    client: openai.OpenAI,
) -> None:
    first = client.responses.create(
        model=MODEL, input="Say ${steps.0.text}.", max_output_tokens=4, background=True
    )
    assert (first.status, first.background, first.output) == ("queued", True, [])
    ended = _ended(client, first.id)
    assert ended.status in ("completed", "incomplete") and ended.output_text
    assert client.responses.retrieve(first.id) == ended
    second = client.responses.create(
        model=MODEL,
        input="And now?",
        max_output_tokens=4,
        background=True,
        previous_response_id=first.id,
    )
    second = _ended(client, second.id)
    assert second.previous_response_id == first.id
    assert second.usage is not None and ended.usage is not None
    assert second.usage.input_tokens > ended.usage.input_tokens, "it has read the first turn"
    third = client.responses.create(
        model=MODEL, input="?", max_output_tokens=4, previous_response_id=second.id
    )
    assert third.usage is not None and third.usage.input_tokens > second.usage.input_tokens
    reference: Any = {"type": "item_reference", "id": ended.output[0].id}
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "?"}]}
    named = client.responses.create(model=MODEL, input=[reference, question], max_output_tokens=4)
    items = client.responses.input_items.list(named.id, order="asc").data
    assert items[0].id == ended.output[0].id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_stream_is_resumed_after_any_number(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL, input="Say hello.", max_output_tokens=4, background=True, stream=True
        )
    )
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    created, last = events[0], events[-1]
    assert created.type == "response.created" and created.response.status == "queued"
    assert last.type in ("response.completed", "response.incomplete")
    response = client.responses.retrieve(created.response.id)
    assert response == last.response
    for after in (0, 2, len(events) - 2):
        again = client.responses.retrieve(response.id, stream=True, starting_after=after)
        assert list(again) == events[after + 1 :]
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.responses.retrieve(response.id, extra_query={"starting_after": 1})
    assert exc_info.value.param == "starting_after"


def test_a_response_is_cancelled_and_cannot_be_continued(client: openai.OpenAI) -> None:
    running = client.responses.create(
        model=MODEL, input="Count to 100000.", max_output_tokens=4000, background=True
    )
    cancelled = client.responses.cancel(running.id)
    assert cancelled.status == "cancelled"
    assert client.responses.cancel(running.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled") as exc_info:
        client.responses.create(model=MODEL, input="?", previous_response_id=running.id)
    assert exc_info.value.param == "previous_response_id"


def test_a_repeat_under_one_key_is_one_response(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": MODEL, "max_output_tokens": 4, "background": True}
    key = {"idempotency-key": "one-response"}
    first = client.responses.create(**call, input="hi", extra_headers=key)
    ended = _ended(client, first.id)
    again = client.responses.create(**call, input="hi", extra_headers=key)
    assert again == ended
    with pytest.raises(openai.APIStatusError) as exc_info:
        client.responses.create(**call, input="ho", extra_headers=key)
    assert exc_info.value.code == "idempotency_key_reused"


def test_deletion_cancels_the_job(client: openai.OpenAI, gateway: RunningStack) -> None:
    running = client.responses.create(
        model=MODEL, input="Count to 100000.", max_output_tokens=4000, background=True
    )
    client.responses.delete(running.id)
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {gateway.api_key}"}
    ) as http:
        [job, *_] = http.get("/jobs", params={"kind": "chat", "limit": 1}).json()["jobs"]
        assert running.id == "resp_" + job["id"]
        eventually_blocking(lambda: _status(http, job["id"]) == "cancelled", 180)


def test_mistakes_are_refused(client: openai.OpenAI) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "store": {"store": False},
        "model": {"model": "gpt-2"},
        "previous_response_id": {"previous_response_id": "resp_none"},
    }
    for field, members in wrong.items():
        call: dict[str, Any] = {"model": MODEL, "input": "hi", "background": True, **members}
        with pytest.raises(openai.APIStatusError) as exc_info:
            client.responses.create(**call)
        assert exc_info.value.status_code in (400, 404), field
        if field != "model":
            assert exc_info.value.param == field
    whole = client.responses.create(model=MODEL, input="hi", max_output_tokens=4)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(whole.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(whole.id, stream=True)


def test_a_deferred_continuation_has_the_conversation_once(
    client: openai.OpenAI, gateway: RunningStack
) -> None:
    first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=4)
    call: dict[str, Any] = {"model": MODEL, "input": "And now?"}
    call |= {"max_output_tokens": 4, "previous_response_id": first.id}
    direct = httpx.post(f"{gateway.url}/v1/responses", json=call, headers=_headers(gateway))
    prefer = _headers(gateway) | {"prefer": "respond-async"}
    deferred = httpx.post(f"{gateway.url}/v1/responses", json=call, headers=prefer)
    assert deferred.status_code == 202, deferred.text
    with httpx.Client(base_url=gateway.url, headers=_headers(gateway)) as http:
        job = deferred.json()["id"]
        eventually_blocking(lambda: _status(http, job) == "succeeded", 180)
        [output] = http.get(f"/jobs/{job}").json()["outputs"]
    expected = direct.json()["usage"]["input_tokens"]
    assert output["body"]["usage"]["input_tokens"] == expected


def _headers(gateway: RunningStack) -> dict[str, str]:
    return {"authorization": f"Bearer {gateway.api_key}"}


def _status(http: httpx.Client, job: str) -> str:
    return str(http.get(f"/jobs/{job}").json()["status"])


def _ended(client: openai.OpenAI, response_id: str) -> Response:
    def ended() -> Response | None:
        shown = client.responses.retrieve(response_id)
        return None if shown.status in ("queued", "in_progress") else shown

    result: Response = eventually_blocking(ended, 180)
    return result
