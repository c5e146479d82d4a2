"""Renders responses that run as jobs (``background: true``), and the events of their streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest
from moyin.text.protocol.responses.codec import ParsedResponseRequest
from moyin.text.protocol.responses.wire import PROOF_OF_REASONING

# Error codes of failed jobs that OpenAI's clients must not see as a server error.
_ERROR_CODES = dict.fromkeys(("rate_limit_exceeded", "overloaded"), "rate_limit_exceeded")
_INVALID_REQUEST = "invalid_request_error"
_STATUSES = {JobStatus.QUEUED: "queued", JobStatus.RUNNING: "in_progress"}
# Members of a response that come from the job's answer.
_ANSWER_MEMBERS = ("status", "model", "output", "usage", "incomplete_details", "error")


def has_ended(response: Mapping[str, Any]) -> bool:
    """Return True if a response has an answer, has failed or was cancelled."""
    return response["status"] not in ("queued", "in_progress")


def is_pending(response: Mapping[str, Any]) -> bool:
    """Return True if a stored response does not yet contain the answer of its job."""
    return bool(response["status"] == "queued")


def require_storable(response_request: ParsedResponseRequest) -> None:
    """Raise InvalidRequest if a background request has ``store: false``.

    The response must be stored, because the client fetches it later.
    """
    if response_request.body.store is False:
        raise InvalidRequest(
            "background: true requires a stored response: omit store: false", field="store"
        )


def to_job_request(response_request: ParsedResponseRequest) -> dict[str, Any]:
    """Return the request that the job of a background response sends.

    The request contains the whole conversation. It sets ``store: false``, because the client's own
    response is stored instead. It also requests ``reasoning.encrypted_content``, which the model
    needs in the next turn.
    """
    job_request = dict(response_request.data)
    for name in ("background", "previous_response_id"):
        job_request.pop(name, None)
    include = dict.fromkeys((*(response_request.body.include or ()), PROOF_OF_REASONING))
    return job_request | {"store": False, "include": list(include)}


def add_job_status(response: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response with the status of its job, and with the answer if the job succeeded.

    Args:
        response: the stored response, which has no answer yet.
        job: the body of ``GET /jobs/{id}``.
    """
    status = JobStatus(job["status"])
    if status is JobStatus.SUCCEEDED:
        answer = job["outputs"][-1].get("body")
        if answer is None:
            return render_failure(
                response, "job_gone", "the job's output was deleted; send the request again"
            )
        members = {name: answer[name] for name in _ANSWER_MEMBERS}
        return {**response, **members, "output": _rename_items(answer, response["id"])}
    if status is JobStatus.CANCELLED:
        return {**response, "status": "cancelled"}
    if status is JobStatus.FAILED:
        return _render_job_error(response, job["error"])
    return {**response, "status": _STATUSES[status]}


def _rename_items(answer: Mapping[str, Any], response_id: str) -> list[dict[str, Any]]:
    """Return the output items of a job's answer with new ids, which contain ``response_id``.

    The stored response of an item is found by the response id in the item's id. The ids in the
    job's answer contain another response id, under which nothing is stored.
    """
    old_id, new_id = (name.removeprefix("resp_") for name in (answer["id"], response_id))
    return [item | {"id": item["id"].replace(old_id, new_id)} for item in answer["output"]]


def render_failure(response: Mapping[str, Any], code: str, message: str) -> dict[str, Any]:
    """Return the response with the status ``failed`` and an error of its job."""
    error = {"code": _ERROR_CODES.get(code, "server_error"), "message": f"{code}: {message}"}
    return {**response, "status": "failed", "error": error}


def _render_job_error(response: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response as failed, with the error of the job's model call if it can be read."""
    call_error = _read_call_error((error.get("details") or {}).get("answer"))
    code, message = call_error.get("code", error["code"]), call_error.get("message")
    if not isinstance(code, str) or not isinstance(message, str):
        return render_failure(response, error["code"], error["message"])
    failure = render_failure(response, code, message)
    error_members = {
        name: call_error[name]
        for name in ("type", "param")
        if isinstance(call_error.get(name), str)
    }
    failure["error"] |= error_members
    if error_members.get("type") == _INVALID_REQUEST:
        failure["error"]["code"] = "invalid_prompt"
    return failure


def _read_call_error(answer: Any) -> Mapping[str, Any]:
    """Return the member ``error`` of the answer to the job's request; empty if it cannot be read.

    The answer may be incomplete, because jobs keep only the beginning of a long one.
    """
    if not isinstance(answer, str):
        return {}
    try:
        body = from_json(answer, allow_partial="trailing-strings")
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def build_first_events(response: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the type and the members of each event that precedes the model's start.

    The events have no sequence numbers yet.
    """
    queued_response = {**response, "status": "queued", "output": [], "usage": None}
    queued_response |= {"error": None, "incomplete_details": None}
    yield "response.created", {"response": queued_response}
    yield "response.queued", {"response": queued_response}


def build_start_event(response: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the event that reports that the model has started to write the response."""
    [(_, event), _] = build_first_events(response)
    return "response.in_progress", {"response": event["response"] | {"status": "in_progress"}}


def build_last_events(response: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of all items of an ended response, then the last event of its stream.

    OpenAI has no event for a cancelled response, so ``response.failed`` contains it.
    """
    for index, item in enumerate(response["output"]):
        position = {"output_index": index}
        empty_values = {"content": [], "summary": [], "arguments": "", "input": ""}
        empty_item = item | {name: empty_values[name] for name in empty_values if name in item}
        yield (
            "response.output_item.added",
            position | {"item": empty_item | {"status": "in_progress"}},
        )
        yield from _build_item_events(item, {"item_id": item["id"], **position})
        yield "response.output_item.done", position | {"item": item}
    status = response["status"]
    event_name = status if status in ("completed", "incomplete") else "failed"
    yield f"response.{event_name}", {"response": dict(response)}


def _build_item_events(
    item: Mapping[str, Any], position: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    match item["type"]:
        case "message":
            for part_index, part in enumerate(item["content"]):
                yield from _build_part_events(part, position | {"content_index": part_index})
        case "reasoning":
            for part_index, part in enumerate(item["summary"]):
                event_prefix, part_position = (
                    "response.reasoning_summary",
                    position | {"summary_index": part_index},
                )
                yield f"{event_prefix}_part.added", part_position | {"part": {**part, "text": ""}}
                yield f"{event_prefix}_text.delta", part_position | {"delta": part["text"]}
                yield f"{event_prefix}_text.done", part_position | {"text": part["text"]}
                yield f"{event_prefix}_part.done", part_position | {"part": part}
        case "function_call":
            event_prefix, arguments = "response.function_call_arguments", item["arguments"]
            yield f"{event_prefix}.delta", position | {"delta": arguments}
            yield f"{event_prefix}.done", position | {"arguments": arguments, "name": item["name"]}
        case "custom_tool_call":
            event_prefix = "response.custom_tool_call_input"
            yield f"{event_prefix}.delta", position | {"delta": item["input"]}
            yield f"{event_prefix}.done", position | {"input": item["input"]}


def _build_part_events(
    part: Mapping[str, Any], position: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    text_member = "refusal" if part["type"] == "refusal" else "text"
    event_prefix = "response.refusal" if text_member == "refusal" else "response.output_text"
    extra_members: dict[str, Any] = (
        {} if text_member == "refusal" else {"logprobs": part.get("logprobs") or []}
    )
    yield "response.content_part.added", position | {"part": {**part, text_member: ""}}
    yield f"{event_prefix}.delta", position | {"delta": part[text_member], **extra_members}
    yield f"{event_prefix}.done", position | {text_member: part[text_member], **extra_members}
    yield "response.content_part.done", position | {"part": part}
