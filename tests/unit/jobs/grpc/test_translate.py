from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from moyin.client.errors import RequestRefused
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import Fault, to_fault
from moyin.jobs.grpc.translate import to_chat_body, to_chat_event, to_job_message

JOB = {
    "id": "j1", "kind": "render", "status": "failed", "steps": 1,
    "progress": {"value": 3.0, "max": 8.0, "step": 0},
    "artifacts": [{"id": "a", "url": "/artifacts/a", "name": "p.png", "media_type": "image/png", "size": 9}],
    "cancelled_by": None, "error": {"code": "render_failed", "message": "no", "details": {}},
    "attempts": 2, "priority": 3, "cost_usd": 0.5, "metadata": {"shot": "7"},
    "created_at": "2026-01-02T03:04:05.5Z", "started_at": None, "finished_at": None,
}  # fmt: skip


def test_a_chat_request_becomes_a_streamed_body() -> None:
    request = pb.ChatRequest(
        model="auto",
        messages=[
            pb.ChatMessage(role="user", content="hi"),
            pb.ChatMessage(role="user", parts_json='[{"type": "text", "text": "x"}]'),
            pb.ChatMessage(role="tool", content="4", tool_call_id="c1"),
        ],
        temperature=0.0,
        stop=["\n"],
        extra_json='{"tools": [], "stream": false}',
    )
    assert to_chat_body(request) == {
        "model": "auto",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        "temperature": 0.0,
        "stop": ["\n"],
        "tools": [],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("text", ["{", "[]", "1", pytest.param("[" * 100_000, id="deep")])
def test_bad_json_is_named(text: str) -> None:
    with pytest.raises(Fault) as caught:
        to_chat_body(pb.ChatRequest(model="m", extra_json=text))
    assert (caught.value.status, caught.value.field) == (
        grpc.StatusCode.INVALID_ARGUMENT, "extra_json",
    )  # fmt: skip


def test_chunks_become_events() -> None:
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": "he"}, "finish_reason": "stop"}]}
    event = to_chat_event(chunk)
    assert (event.text, event.finish_reason) == ("he", "stop")
    usage = to_chat_event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (3, 4)
    calls = [{"index": 0, "function": {"name": "f"}}]
    event = to_chat_event({"choices": [{"delta": {"tool_calls": calls}}]})
    assert json.loads(event.tool_calls_json) == calls
    assert to_chat_event({"choices": [{"delta": {"role": "assistant"}}]}).ByteSize() == 0


def test_a_job() -> None:
    job = to_job_message(JOB | {"outputs": [{"text": "x"}]})
    assert (job.status, job.error.code) == (pb.JOB_STATUS_FAILED, "render_failed")
    assert (job.progress.value, job.artifacts[0].size, job.metadata["shot"]) == (3, 9, "7")
    assert job.created_at.ToJsonString() == "2026-01-02T03:04:05.500Z"
    assert not job.HasField("started_at")
    assert json.loads(job.outputs_json) == [{"text": "x"}]


def test_a_cancelled_job_names_its_canceller() -> None:
    assert not to_job_message(JOB).HasField("cancelled_by")
    body = JOB | {"status": "cancelled", "cancelled_by": {"kind": "key", "id": "k1"}}
    canceller = to_job_message(body).cancelled_by
    assert (canceller.kind, canceller.id) == ("key", "k1")
    body = JOB | {"status": "cancelled", "cancelled_by": {"kind": "operator", "id": None}}
    assert to_job_message(body).cancelled_by.kind == "operator"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"code": "job_not_found", "detail": "no"}, (grpc.StatusCode.NOT_FOUND, "job_not_found")),
        (400, {"error": {"code": "invalid_request", "message": "no", "param": "model"}},
         (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")),
        (429, {"code": "overloaded", "detail": "no"}, (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")),
        (500, "<html>", (grpc.StatusCode.INTERNAL, "internal_error")),
    ],
)  # fmt: skip
def test_an_error_keeps_its_code(status: int, body: Any, expected: tuple[Any, str]) -> None:
    headers = {"x-request-id": "r1", "retry-after": "3"}
    fault = to_fault(RequestRefused(status, headers, json.dumps(body).encode()))
    assert (fault.status, fault.code) == expected
    details = status_pb2.Status.FromString(fault.to_status().SerializeToString())
    assert details.code == fault.status.value[0]
    first, second, *_, last = details.details
    error_info, request_info, delay = (
        error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo(),
    )  # fmt: skip
    assert first.Unpack(error_info) and second.Unpack(request_info) and last.Unpack(delay)
    assert (error_info.reason, error_info.domain, request_info.request_id) == (
        fault.code,
        "moyin",
        "r1",
    )
    assert delay.retry_delay.seconds == 3
