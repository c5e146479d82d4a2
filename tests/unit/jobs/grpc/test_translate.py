from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from moyin.client.errors import RequestRefused
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import Fault, to_fault
from moyin.jobs.grpc.translate import (
    to_chat_body,
    to_chat_event,
    to_job_event,
    to_job_message,
    to_jobs_query,
)

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


@pytest.mark.parametrize("extra_json", ["{", "[]", "1", pytest.param("[" * 100_000, id="deep")])
def test_invalid_json_is_refused_with_its_field(extra_json: str) -> None:
    with pytest.raises(Fault) as exc_info:
        to_chat_body(pb.ChatRequest(model="m", extra_json=extra_json))
    assert (exc_info.value.status, exc_info.value.field) == (
        grpc.StatusCode.INVALID_ARGUMENT, "extra_json",
    )  # fmt: skip


def test_chunks_become_events() -> None:
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": "he"}, "finish_reason": "stop"}]}
    event = to_chat_event(chunk)
    assert (event.text, event.finish_reason) == ("he", "stop")
    usage_event = to_chat_event(
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    )
    assert (usage_event.usage.prompt_tokens, usage_event.usage.completion_tokens) == (3, 4)
    tool_calls = [{"index": 0, "function": {"name": "f"}}]
    event = to_chat_event({"choices": [{"delta": {"tool_calls": tool_calls}}]})
    assert json.loads(event.tool_calls_json) == tool_calls
    assert to_chat_event({"choices": [{"delta": {"role": "assistant"}}]}).ByteSize() == 0
    token_details = {
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    usage_event = to_chat_event({"choices": [], "usage": {"prompt_tokens": 3, **token_details}})
    assert (usage_event.usage.cached_tokens, usage_event.usage.reasoning_tokens) == (2, 1)


def test_a_job_becomes_a_message() -> None:
    job = to_job_message(JOB | {"outputs": [{"text": "x"}]})
    assert (job.status, job.error.code) == (pb.JOB_STATUS_FAILED, "render_failed")
    assert (job.progress.value, job.artifacts[0].size, job.metadata["shot"]) == (3, 9, "7")
    assert job.created_at.ToJsonString() == "2026-01-02T03:04:05.500Z"
    assert not job.HasField("started_at")
    assert json.loads(job.outputs_json) == [{"text": "x"}]
    assert not job.HasField("position") and not job.HasField("queued_for")


def test_a_queued_job_shows_its_place() -> None:
    body = JOB | {"status": "queued", "error": None, "queued_for": 0.0, "position": 1}
    job = to_job_message(body)
    assert (job.HasField("queued_for"), job.queued_for, job.position) == (True, 0, 1)


def test_a_batch_shows_its_children_and_its_submission() -> None:
    seed = 2**63 + 1
    child = {
        "index": 1, "status": "failed", "inputs": {"seed": seed}, "progress": 0.5,
        "artifacts": JOB["artifacts"], "cached": False,
        "error": {"code": "render_failed", "message": "no", "details": {"node": "7"}},
    }  # fmt: skip
    step = {"kind": "render", "template": "dawn", "inputs": None, "graph": "/g", "cache": False}
    submitted_job = {"steps": [step], "deadline": "2026-01-02T03:04:05Z", "webhook": None}
    job = to_job_message(JOB | {"children": [child], "submitted": submitted_job})
    [sent_child] = job.children
    assert (sent_child.status, sent_child.progress) == (pb.JOB_STATUS_FAILED, 0.5)
    assert json.loads(sent_child.inputs_json) == {"seed": seed}
    assert json.loads(sent_child.error.details_json) == {"node": "7"}
    assert (sent_child.artifacts[0].id, job.submitted.webhook) == ("a", "")
    [sent_step] = job.submitted.steps
    assert (sent_step.template, sent_step.inputs_json, sent_step.graph) == ("dawn", "", "/g")
    assert sent_step.HasField("cache") and not sent_step.cache
    assert job.submitted.deadline.seconds == 1767323045


def test_a_list_request_becomes_a_query() -> None:
    unknown_status: Any = 99
    request = pb.ListJobsRequest(
        status=[pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED, pb.JOB_STATUS_UNSPECIFIED],
        kind="", metadata={"shot": "a&b=7", "": "x"}, limit=0, cursor="c/1",
        created_after=Timestamp(seconds=1, nanos=5000),
    )  # fmt: skip
    request.MergeFromString(pb.ListJobsRequest(status=[unknown_status]).SerializeToString())
    assert to_jobs_query(request) == [
        ("status", "failed"), ("status", "cancelled"), ("status", "unspecified"), ("status", "99"),
        ("kind", ""), ("metadata.", "x"), ("metadata.shot", "a&b=7"),
        ("created_after", "1970-01-01T00:00:01.000005Z"), ("limit", "0"), ("cursor", "c/1"),
    ]  # fmt: skip
    assert to_jobs_query(pb.ListJobsRequest()) == []


def test_a_list_request_that_cannot_be_sent_is_refused() -> None:
    late_request = pb.ListJobsRequest(created_before=Timestamp(seconds=2**60))
    request_with_unknown_field = pb.ListJobsRequest.FromString(b"\xfa\x07\x01x")
    for request, field in (
        (late_request, "created_before"),
        (request_with_unknown_field, "request"),
    ):
        with pytest.raises(Fault) as exc_info:
            to_jobs_query(request)
        fault = (exc_info.value.status, exc_info.value.field)
        assert fault == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_events_are_typed() -> None:
    event = to_job_event("1-0", "failed", json.dumps(JOB | {"attempt": 2}))
    assert (event.id, event.WhichOneof("data")) == ("1-0", "status")
    assert (event.status.job.error.code, event.status.attempt) == ("render_failed", 2)
    event = to_job_event("1-0", "progress", '{"value": 1.0, "max": 2.0, "step": 0, "node": "7"}')
    assert (event.progress.max, event.progress.node) == (2, "7")
    event = to_job_event("", "step", '{"step": 1, "artifacts": [], "attempt": 3}')
    assert (event.step.step, event.step.attempt, event.step.HasField("value")) == (1, 3, False)
    event = to_job_event("1-0", "later", "[1]")
    assert (event.WhichOneof("data"), event.data_json) == (None, "[1]")


def test_a_cancelled_job_names_its_canceller() -> None:
    assert not to_job_message(JOB).HasField("cancelled_by")
    body = JOB | {"status": "cancelled", "cancelled_by": {"kind": "key", "id": "k1"}}
    canceller = to_job_message(body).cancelled_by
    assert (canceller.kind, canceller.id) == ("key", "k1")
    body = JOB | {"status": "cancelled", "cancelled_by": {"kind": "operator", "id": None}}
    assert to_job_message(body).cancelled_by.kind == "operator"


@pytest.mark.parametrize(
    ("status", "body", "expected_fault"),
    [
        (404, {"code": "job_not_found", "detail": "no"}, (grpc.StatusCode.NOT_FOUND, "job_not_found")),
        (400, {"error": {"code": "invalid_request", "message": "no", "param": "model"}},
         (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")),
        (429, {"code": "overloaded", "detail": "no"}, (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")),
        (500, "<html>", (grpc.StatusCode.INTERNAL, "internal_error")),
    ],
)  # fmt: skip
def test_an_error_keeps_its_code(status: int, body: Any, expected_fault: tuple[Any, str]) -> None:
    headers = {"x-request-id": "r1", "retry-after": "3"}
    fault = to_fault(RequestRefused(status, headers, json.dumps(body).encode()))
    assert (fault.status, fault.code) == expected_fault
    details = status_pb2.Status.FromString(fault.to_status().SerializeToString())
    assert details.code == fault.status.value[0]
    first_detail, second_detail, *_, last_detail = details.details
    error_info, request_info, retry_info = (
        error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo(),
    )  # fmt: skip
    assert (
        first_detail.Unpack(error_info)
        and second_detail.Unpack(request_info)
        and last_detail.Unpack(retry_info)
    )
    assert (error_info.reason, error_info.domain, request_info.request_id) == (
        fault.code,
        "moyin",
        "r1",
    )
    assert retry_info.retry_delay.seconds == 3
