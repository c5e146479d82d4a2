"""Translates the messages of moyin.v1 to and from the JSON of the HTTP API; without I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import new_field_fault


def to_chat_body(request: pb.ChatRequest) -> dict[str, Any]:
    """Convert a chat request to the body of an OpenAI chat completion; raise `Fault` for invalid JSON."""
    body = _parse_json_field(request.extra_json, "extra_json", dict) or {}
    body |= {
        "model": request.model,
        "messages": [_to_chat_message(m, f"messages.{i}") for i, m in enumerate(request.messages)],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("max_tokens", "temperature", "top_p"):
        if request.HasField(name):
            body[name] = getattr(request, name)
    if request.stop:
        body["stop"] = list(request.stop)
    return body


def to_chat_event(chunk: Mapping[str, Any]) -> pb.ChatEvent:
    """Convert a chunk of OpenAI's stream to an event."""
    event = pb.ChatEvent()
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        event.text = delta.get("content") or ""
        event.finish_reason = choice.get("finish_reason") or ""
        if delta.get("tool_calls"):
            event.tool_calls_json = json.dumps(delta["tool_calls"])
    usage = chunk.get("usage")
    if usage:
        event.usage.prompt_tokens = usage.get("prompt_tokens") or 0
        event.usage.completion_tokens = usage.get("completion_tokens") or 0
    return event


def to_job_message(body: Mapping[str, Any]) -> pb.Job:
    """Convert the JSON of a job, with or without outputs, to a message."""
    job = pb.Job(
        id=body["id"],
        kind=body["kind"],
        status=f"JOB_STATUS_{body['status'].upper()}",
        steps=body["steps"],
        progress=pb.Progress(**body["progress"]),
        artifacts=[
            pb.Artifact(**{name: artifact[name] for name in pb.Artifact.DESCRIPTOR.fields_by_name})
            for artifact in body["artifacts"]
        ],
        attempts=body["attempts"],
        cost_usd=body["cost_usd"],
        metadata=body["metadata"],
        outputs_json=json.dumps(body["outputs"]) if "outputs" in body else "",
    )
    if body["error"] is not None:
        job.error.code = body["error"]["code"]
        job.error.message = body["error"]["message"]
    canceller = body["cancelled_by"]
    if canceller is not None:
        job.cancelled_by.kind = canceller["kind"]
        job.cancelled_by.id = canceller["id"] or ""
    for name in ("created_at", "started_at", "finished_at"):
        if body[name] is not None:
            getattr(job, name).CopyFrom(_to_timestamp(body[name]))
    return job


def _to_chat_message(message: pb.ChatMessage, field: str) -> dict[str, Any]:
    parts = _parse_json_field(message.parts_json, f"{field}.parts_json", list)
    body: dict[str, Any] = {
        "role": message.role,
        "content": message.content if parts is None else parts,
    }
    calls = _parse_json_field(message.tool_calls_json, f"{field}.tool_calls_json", list)
    if calls is not None:
        body["tool_calls"] = calls
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    return body


def _parse_json_field(text: str, field: str, kind: type[Any]) -> Any:
    """Parse the JSON of type ``kind`` in a field; return None if the text is empty."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise new_field_fault(field, f"must be a JSON {expected}", "invalid_json")
    return value


def _to_timestamp(text: str) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(text))
    return stamp
