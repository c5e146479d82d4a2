"""Converts jobs to the response bodies of ComfyUI's queue, history and job list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from moyin.domain import references
from moyin.domain.job import Job, JobError, JobSpec, JobStatus
from moyin.domain.prompt import ComfyPrompt, PromptRecord
from moyin.domain.queue_place import QueuePlace
from moyin.jobs.protocol.response import QueueView, render_job

# The states of prompts in ComfyUI's job list.
JOB_LIST_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
_END_MESSAGES = ("execution_success", "execution_error", "execution_interrupted")
_STATES = {
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
# The frontend can display outputs of these types.
_DISPLAYABLE_SLOTS = frozenset({"images", "video", "audio", "3d", "text"})


def get_queue_number(job: Job, prompt: ComfyPrompt | None) -> float:
    """Return the number by which the queue is sorted: the client's number, or the submission time.

    The time is in Unix microseconds, and negative if the client requested the front of the queue.
    """
    if prompt is not None and prompt.number is not None:
        return prompt.number
    number = int(job.created_at.timestamp() * 1_000_000)
    return -number if prompt is not None and prompt.front else number


def show_prompt_id(content: bytes, job: Job) -> bytes:
    """Return a message or a part of a response with the chosen id in place of the job's id.

    The ids have the same length, so that binary messages stay valid.
    """
    if job.chosen_id is None:
        return content
    return content.replace(job.id.encode(), job.chosen_id.encode())


def build_queue_row(
    job: Job, spec: JobSpec | None, queue_place: QueuePlace | None = None
) -> list[Any]:
    """Return a row of ``/queue``: ``[number, prompt_id, prompt, extra_data, outputs]``.

    If ``queue_place`` is not None, ``extra_data`` has the member ``moyin`` with the job's position and
    estimated times.
    """
    prompt = spec.comfyui if spec is not None else None
    extra_data: dict[str, Any] = dict(prompt.extra_data) if prompt is not None else {}
    if prompt is not None and prompt.client_id is not None:
        extra_data["client_id"] = prompt.client_id
    extra_data["create_time"] = _to_milliseconds(job.created_at)
    if queue_place is not None:
        job_body = render_job(job, QueueView(now=job.created_at, places={job.id: queue_place}))
        extra_data["moyin"] = job_body.model_dump(mode="json", include={"position", "eta"})
    outputs = list(prompt.outputs) if prompt is not None else []
    return [get_queue_number(job, prompt), job.id, _resolve_graph(spec), extra_data, outputs]


def build_history_entry(
    job: Job, spec: JobSpec | None, record: PromptRecord | None
) -> dict[str, Any]:
    """Return an entry of ``/history``; ``record`` is ComfyUI's own entry, if any."""
    status = "success" if job.status is JobStatus.SUCCEEDED else "error"
    return {
        "prompt": build_queue_row(job, spec),
        "outputs": dict(record.outputs) if record is not None else {},
        "meta": dict(record.meta) if record is not None else {},
        "status": {
            "status_str": status,
            "completed": status == "success",
            "messages": _build_messages(job, record),
        },
    }


def build_end_message(job: Job, record: PromptRecord | None) -> tuple[str, Mapping[str, Any]]:
    """Return the type and the data of the message that reports the end of a job.

    Usually this is ComfyUI's own message. There is none if the job was cancelled while it waited,
    its process died, or its deadline passed; then a message in the same format is built.
    """
    message_type = {
        JobStatus.SUCCEEDED: "execution_success",
        JobStatus.CANCELLED: "execution_interrupted",
    }.get(job.status, "execution_error")
    for name, data in reversed(record.messages if record is not None else ()):
        if name == message_type:
            return name, {**data, **_build_canceller(job)}
    data = {"prompt_id": job.id, "timestamp": _to_milliseconds(job.finished_at or job.created_at)}
    if message_type == "execution_success":
        return message_type, data
    details = job.error.details if job.error is not None else {}
    data = {
        "prompt_id": job.id,
        # These are strings even if no node failed, because the frontend hides the history if one is
        # null.
        "node_id": str(details.get("node_id") or ""),
        "node_type": str(details.get("node_type") or ""),
        "executed": [],
        **data,
    }
    if message_type == "execution_interrupted":
        return message_type, {**data, **_build_canceller(job)}
    return message_type, {**data, **_build_error(job.error)}


def _build_canceller(job: Job) -> dict[str, Any]:
    """Return the member ``cancelled_by``, which is Moyin's addition to the interruption message."""
    if job.cancelled_by is None:
        return {}
    return {"cancelled_by": {"kind": job.cancelled_by.kind.value, "id": job.cancelled_by.id}}


def get_job_state(job: Job) -> str:
    """Return the state of a job in ComfyUI's job list, such as ``pending`` or ``completed``."""
    if job.status.is_final:
        return _STATES[job.status]
    return "in_progress" if job.started_at is not None else "pending"


def build_job_summary(
    job: Job, spec: JobSpec | None, record: PromptRecord | None
) -> dict[str, Any]:
    """Return a job's entry in ``/api/jobs``, without members whose value is unknown."""
    number, _, _, extra_data, _ = build_queue_row(job, spec)
    output_count, preview = _summarize_outputs(record.outputs if record is not None else {})
    png_info = extra_data.get("extra_pnginfo")
    workflow = png_info.get("workflow") if isinstance(png_info, Mapping) else None
    summary: dict[str, Any] = {
        "id": job.id,
        "status": get_job_state(job),
        "priority": number,
        "create_time": extra_data["create_time"],
        "execution_start_time": _find_start_time(job, record),
        "outputs_count": output_count,
        "preview_output": preview,
        "workflow_id": workflow.get("id") if isinstance(workflow, Mapping) else None,
    }
    if job.status.is_final:
        name, data = build_end_message(job, record)
        summary["execution_end_time"] = data.get("timestamp")
        summary["execution_error"] = data if name == "execution_error" else None
    return {key: value for key, value in summary.items() if value is not None}


def build_job_detail(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """Return the response body of ``/api/jobs/{id}``."""
    _, _, graph, extra_data, _ = build_queue_row(job, spec)
    detail = build_job_summary(job, spec, record) | {
        "workflow": {"prompt": graph, "extra_data": extra_data}
    }
    if not job.status.is_final:
        return detail
    history_entry = build_history_entry(job, spec, record)
    return detail | {
        "outputs": history_entry["outputs"],
        "execution_status": history_entry["status"],
        "execution_meta": history_entry["meta"],
    }


def _resolve_graph(spec: JobSpec | None) -> Any:
    if spec is None or len(spec.steps) != 1:
        return {}
    return references.resolve_references(spec.steps[0].payload, ())


def _build_messages(job: Job, record: PromptRecord | None) -> list[list[Any]]:
    recorded_messages = record.messages if record is not None else ()
    messages = [[name, data] for name, data in recorded_messages if name not in _END_MESSAGES]
    return [*messages, list(build_end_message(job, record))]


def _build_error(error: JobError | None) -> dict[str, Any]:
    return {
        "exception_message": error.message if error is not None else "",
        "exception_type": error.code if error is not None else "",
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }


def _find_start_time(job: Job, record: PromptRecord | None) -> int | None:
    for name, data in record.messages if record is not None else ():
        if name == "execution_start" and isinstance(data.get("timestamp"), int):
            timestamp: int = data["timestamp"]
            return timestamp
    return None if job.started_at is None else _to_milliseconds(job.started_at)


def _summarize_outputs(outputs: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Return the number of outputs, and the output to display (preferably a saved file) or None."""
    items_by_slot = [
        (slot, {"nodeId": node, "mediaType": slot, **item})
        for node, slots in outputs.items()
        if isinstance(slots, Mapping)
        for slot, items in slots.items()
        if isinstance(items, Sequence) and not isinstance(items, str)
        for item in items
        if isinstance(item, Mapping)
    ]
    displayable_items = [item for slot, item in items_by_slot if slot in _DISPLAYABLE_SLOTS]
    displayable_items.sort(key=lambda item: item.get("type") != "output")
    return len(items_by_slot), displayable_items[0] if displayable_items else None


def _to_milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
