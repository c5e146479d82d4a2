"""Tests that ``Prefer: respond-async`` turns a text call of any protocol into a durable job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.stack import RunningStack
from tests.waiting import eventually_blocking

# In a pipeline, `${steps.0.text}` would be a reference; here it must stay plain text.
HELLO = {"role": "user", "content": "Say hello, ${steps.0.text}."}
SOON = {"prefer": "respond-async"}
CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [HELLO], "max_tokens": 4, "stream": True},
    "/v1/messages": {"messages": [HELLO], "max_tokens": 4},
    "/v1/ollama/api/chat": {"messages": [HELLO], "options": {"num_predict": 4}},
    "/v1/ollama/api/generate": {"prompt": "Say hello.", "options": {"num_predict": 4}},
}


@pytest.fixture
def http(gateway: RunningStack) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        yield client


def test_job_output_has_the_format_of_the_requests_protocol(http: httpx.Client) -> None:
    job_paths: dict[str, str] = {}
    for path, body in CALLS.items():
        response = http.post(path, json={"model": "smollm2-135m", **body}, headers=SOON)
        assert response.status_code == 202, response.text
        assert response.headers["preference-applied"] == "respond-async"
        job_paths[path] = response.headers["location"]
        assert response.json()["kind"] == "chat"
    outputs = {path: _wait_for_end(http, job)["outputs"][0] for path, job in job_paths.items()}
    assert all(output["text"] and output["backend"] for output in outputs.values()), outputs
    bodies = {path: output["body"] for path, output in outputs.items()}
    assert bodies["/v1/chat/completions"]["object"] == "chat.completion"
    assert bodies["/v1/messages"]["type"] == "message"
    assert bodies["/v1/ollama/api/chat"]["done"] is True
    assert bodies["/v1/ollama/api/generate"]["response"]


def test_repeated_request_with_an_idempotency_key_is_one_job(http: httpx.Client) -> None:
    body = {"model": "smollm2-135m", "messages": [HELLO], "max_tokens": 4}
    headers = {**SOON, "idempotency-key": "tell-me-once"}
    first_response, second_response = (
        http.post("/v1/messages", json=body, headers=headers) for _ in range(2)
    )
    assert first_response.headers["location"] == second_response.headers["location"]
    assert "idempotent-replayed" in second_response.headers
    conflict_response = http.post("/v1/messages", json={**body, "max_tokens": 5}, headers=headers)
    assert (conflict_response.status_code, conflict_response.json()["error"]["code"]) == (
        422,
        "idempotency_key_reused",
    )
    _wait_for_end(http, first_response.headers["location"])


def test_errors_are_immediate_and_in_the_protocols_format(gateway: RunningStack) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.api_key) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-2", messages=[HELLO], extra_headers=SOON)  # type: ignore[list-item]
        with pytest.raises(openai.BadRequestError) as exc_info:
            client.chat.completions.create(model="auto", messages=[], extra_headers=SOON)
        assert exc_info.value.param == "messages"


def _wait_for_end(http: httpx.Client, job_path: str) -> dict[str, Any]:
    def find_ended_job() -> dict[str, Any] | None:
        shown_job: dict[str, Any] = http.get(job_path).json()
        return shown_job if shown_job["status"] in ("succeeded", "failed", "cancelled") else None

    finished_job: dict[str, Any] = eventually_blocking(find_ended_job, 180)
    assert finished_job["status"] == "succeeded", finished_job
    return finished_job
