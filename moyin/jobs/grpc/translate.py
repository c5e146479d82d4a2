"""Translates between the messages of moyin.v1 and the JSON of the HTTP API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.faults import new_field_fault
from moyin.jobs.protocol.event_bodies import EVENT_BODIES, ProgressEvent, StatusEvent, StepEvent

_JSON = "_json"
_STATUS = "JOB_STATUS_"
_MAX_LISTED_NUMBERS = 10
_FIELDS = {StatusEvent: "status", ProgressEvent: "progress", StepEvent: "step"}
# The field of a JobEvent with the typed data, by type of event.
EVENT_FIELDS: Mapping[str, str] = {
    kind.value: _FIELDS[body] for kind, body in EVENT_BODIES.items() if body in _FIELDS
}


def to_chat_body(request: pb.ChatRequest) -> dict[str, Any]:
    """Convert a chat request to the body of an OpenAI chat completion.

    Raises:
        Fault: a field is not valid JSON.
    """
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
        prompt_details = usage.get("prompt_tokens_details") or {}
        completion_details = usage.get("completion_tokens_details") or {}
        event.usage.cached_tokens = prompt_details.get("cached_tokens") or 0
        event.usage.reasoning_tokens = completion_details.get("reasoning_tokens") or 0
    return event


def to_jobs_query(request: pb.ListJobsRequest) -> list[tuple[str, str]]:
    """Return the query of ``GET /jobs`` for a request; the HTTP route checks the values.

    Raises:
        Fault: a time is out of range, or the request has fields that this server does not define.
    """
    unknown_fields = UnknownFieldSet(request)
    unknown_numbers = sorted({unknown_fields[i].field_number for i in range(len(unknown_fields))})
    if unknown_numbers:
        raise new_field_fault(
            "request",
            "must have only fields that this server's ListJobsRequest defines; unknown field "
            f"numbers: {', '.join(map(str, unknown_numbers[:_MAX_LISTED_NUMBERS]))}",
        )
    parameters: list[tuple[str, str]] = []
    for field, value in request.ListFields():
        if field.enum_type is not None:
            parameters += [(field.name, _to_status_name(number)) for number in value]
        elif field.is_repeated:
            parameters += [(f"{field.name}.{key}", text) for key, text in sorted(value.items())]
        elif field.message_type is not None:
            parameters.append((field.name, _format_time(value, field.name)))
        else:
            parameters.append((field.name, str(value)))
    return parameters


def to_job_message(body: Mapping[str, Any]) -> pb.Job:
    """Convert the JSON of a job, with or without outputs, to a message."""
    job = pb.Job()
    fill_message(job, body)
    return job


def to_job_event(event_id: str, kind: str, data_json: str) -> pb.JobEvent:
    """Convert an event of a job to a message.

    The message of an unknown type of event has the data only as JSON.

    Args:
        kind: the type of the event.
        data_json: the data of the event, as JSON.
    """
    event = pb.JobEvent(id=event_id, type=kind, data_json=data_json)
    field_name = EVENT_FIELDS.get(kind)
    if field_name is not None:
        data, typed_body = json.loads(data_json), getattr(event, field_name)
        fill_message(typed_body, data)
        if isinstance(typed_body, pb.StatusEvent):
            fill_message(typed_body.job, data)
    return event


def fill_message(message: Message, body: Mapping[str, Any]) -> None:
    """Set the fields of a message from the members of ``body`` with the same names.

    A field ``<member>_json`` is set to the JSON of the member. Fields whose member is null or
    missing stay unset.
    """
    for field in message.DESCRIPTOR.fields:
        member_value = body.get(field.name.removesuffix(_JSON))
        if member_value is None:
            continue
        message_type = field.message_type
        if field.name.endswith(_JSON):
            setattr(message, field.name, json.dumps(member_value))
        elif field.enum_type is not None:
            number = field.enum_type.values_by_name[_STATUS + member_value.upper()].number
            setattr(message, field.name, number)
        elif message_type is None:
            setattr(message, field.name, member_value)
        elif message_type.GetOptions().map_entry:
            getattr(message, field.name).update(member_value)
        elif field.is_repeated:
            for item in member_value:
                fill_message(getattr(message, field.name).add(), item)
        elif message_type is Timestamp.DESCRIPTOR:
            getattr(message, field.name).FromJsonString(member_value)
        else:
            child_message = getattr(message, field.name)
            child_message.SetInParent()
            fill_message(child_message, member_value)


def _to_status_name(number: int) -> str:
    """Return the HTTP API's name of a status; for an unknown number, the number as text."""
    enum_value = pb.JobStatus.DESCRIPTOR.values_by_number.get(number)
    return str(number) if enum_value is None else enum_value.name.removeprefix(_STATUS).lower()


def _format_time(timestamp: Timestamp, field: str) -> str:
    try:
        return str(timestamp.ToJsonString())
    except ValueError:
        raise new_field_fault(field, "must be a time between the years 1 and 9999") from None


def _to_chat_message(message: pb.ChatMessage, field: str) -> dict[str, Any]:
    parts = _parse_json_field(message.parts_json, f"{field}.parts_json", list)
    body: dict[str, Any] = {
        "role": message.role,
        "content": message.content if parts is None else parts,
    }
    tool_calls = _parse_json_field(message.tool_calls_json, f"{field}.tool_calls_json", list)
    if tool_calls is not None:
        body["tool_calls"] = tool_calls
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    return body


def _parse_json_field(json_text: str, field: str, kind: type[Any]) -> Any:
    """Return the JSON value in the text of a field, or None if the text is empty.

    Raises:
        Fault: the text is not JSON, or its value is not of the type ``kind``.
    """
    if not json_text:
        return None
    try:
        json_value = json.loads(json_text)
    except (ValueError, RecursionError):
        json_value = None
    if not isinstance(json_value, kind):
        expected_type = "object" if kind is dict else "list"
        raise new_field_fault(field, f"must be a JSON {expected_type}", "invalid_json")
    return json_value
