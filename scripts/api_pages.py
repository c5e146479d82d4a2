"""Generates docs/reference/errors.md and events.md from the code, for `scripts/reference.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

# This module defines an error code, which `ERROR_TYPES` has only after the import.
import moyin.store.hub  # noqa: F401
from moyin.domain.job import EventType
from moyin.errors import MoyinError, StepError
from moyin.http.problems import get_http_status
from moyin.jobs.protocol import event_bodies
from scripts.error_advice import ADVICE

EVENT_MEANINGS: Mapping[EventType, str] = {
    EventType.QUEUED: "The job was accepted, or a retry began.",
    EventType.RUNNING: "The job runs.",
    EventType.PROGRESS: "A render went on. At most ten a second, of a batch one a second.",
    EventType.PREVIEW: "A render has a new preview picture. Only for `?previews=true`, at most two a "
    "second for each running render.",
    EventType.STEP: "A step has finished and is recorded.",
    EventType.SUCCEEDED: "All steps have succeeded.",
    EventType.FAILED: "A step has failed for good, or the deadline has passed: see `error`.",
    EventType.CANCELLED: "The job was cancelled: see `cancelled_by`.",
}


def list_error_types() -> Mapping[str, type[MoyinError]]:
    """Return the error types by code, each base type before the types derived from it."""
    return {
        error_type.code: error_type
        for error_type in _walk_classes(MoyinError)
        if "code" in vars(error_type)
    }


def build_errors_page(notice: str) -> str:
    """Return the text of docs/reference/errors.md, which begins with the paragraph ``notice``."""
    lines = [
        "# Errors",
        "",
        notice,
        "An error is RFC 9457 problem details: `status`, `title`, `detail` (what is wrong, and what would be",
        "right), `code`, `request_id`, and where it applies `field`. Routes of OpenAI, Anthropic, Ollama and",
        "ComfyUI answer in the format of their protocol, with the same code. The codes are stable, the",
        "sentences are not. *Retry* means that the same request may succeed later; `Retry-After` tells when.",
        "A job that fails has `error: {code, message, details}`; *job* stands where the code comes from a step.",
        "",
        "| code | status | retry | meaning | what to do |",
        "|---|---|---|---|---|",
    ]
    for code, error_type in list_error_types().items():
        meaning, advice = ADVICE[code]
        status = (
            "job" if issubclass(error_type, StepError) else str(get_http_status(error_type("")))
        )
        retry = "yes" if error_type.retryable else ""
        lines.append(f"| `{code}` | {status} | {retry} | {meaning} | {advice} |")
    return "\n".join(lines) + "\n"


def build_events_page(notice: str) -> str:
    """Return the text of docs/reference/events.md: the types of events and their members.

    ``notice`` is the paragraph at the top.
    """
    lines = [
        "# Events of jobs",
        "",
        notice,
        "How to follow a job: [jobs](../jobs.md#following-a-job). Server-sent events carry the type as `event`, the",
        "data as JSON in `data`, the cursor as `id`; messages of the WebSocket are `{id, type, data}`. A webhook",
        "has the type `job.` and that of the last event, and the same data. New members may be added.",
        "",
        "[asyncapi.json](asyncapi.json) describes the same as AsyncAPI 3. The gateway's OpenAPI document has the types",
        "as `JobEvent`, and `moyin/jobs/grpc/moyin.proto` as messages ([gRPC](../grpc.md)).",
        "",
        "| type | last | data | meaning |",
        "|---|---|---|---|",
    ]
    for event_type in EventType:
        body = event_bodies.EVENT_BODIES[event_type].__name__
        is_last = "yes" if event_type.is_final else ""
        link = f"[{body}](#{body.lower()})"
        lines.append(
            f"| `{event_type.value}` | {is_last} | {link} | {EVENT_MEANINGS[event_type]} |"
        )
    lines += [
        "",
        "A job that is retried goes on with `queued` after a last event, in the same stream. The event `error`",
        "with `{code, message, request_id}` says that the stream ends and not the job: connect again, if the code's row in",
        "[errors](errors.md) says so. An `id` is the Unix milliseconds when the event was published, a hyphen and a",
        "number, such as `1700000000000-0`. An event without `id` was made from the job's row, because the store of",
        "events was away; it is the last of its stream.",
    ]
    for model in dict.fromkeys(event_bodies.EVENT_BODIES.values()):
        lines += _describe_model(model)
    return "\n".join(lines) + "\n"


def _walk_classes(error_type: type[MoyinError]) -> Iterator[type[MoyinError]]:
    yield error_type
    for child in error_type.__subclasses__():
        yield from _walk_classes(child)


def _describe_model(model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema(mode="serialization")
    bodies = {model.__name__: schema, **schema.get("$defs", {})}
    yield from ("", f"## {model.__name__}", "", schema["description"], "")
    yield from ("| member | type | meaning |", "|---|---|---|")
    for name, member in schema["properties"].items():
        description = _describe_member(member, bodies)
        yield f"| `{name}` | {_name_type(member)} | {description} |"


def _describe_member(member: Mapping[str, Any], bodies: Mapping[str, Any]) -> str:
    """Return the description of a member of an event, or else that of the member's type."""
    if "description" in member:
        return str(member["description"])
    for variant in (member, member.get("items", {}), *member.get("anyOf", ())):
        body = bodies.get(variant.get("$ref", "").removeprefix("#/$defs/"), {})
        if "properties" in body:
            members = ", ".join(f"`{name}`" for name in body["properties"])
            return f"{body['description'].rstrip('.')}: {members}."
    return ""


def _name_type(member: Mapping[str, Any]) -> str:
    if "anyOf" in member:
        return " or ".join(_name_type(variant) for variant in member["anyOf"])
    if "$ref" in member:
        return str(member["$ref"]).removeprefix("#/$defs/")
    if member.get("type") == "array":
        return f"list of {_name_type(member['items'])}"
    if member.get("format") == "date-time":
        return "time (RFC 3339)"
    return str(member["type"])
