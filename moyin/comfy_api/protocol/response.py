"""Converts jobs into the bodies of ComfyUI's queue, history and job list; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from moyin.domain import references
from moyin.domain.job import Job, JobError, JobSpec, JobStatus
from moyin.domain.prompt import ComfyPrompt, PromptRecord

__all__ = [
    "end_message",
    "history_entry",
    "job_detail",
    "job_summary",
    "number_of",
    "queue_row",
    "state_of",
]

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
_END_MESSAGES = ("execution_success", "execution_error", "execution_interrupted")
_STATES = {
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
# Output slots that the frontend can display.
_DISPLAYABLE_SLOTS = frozenset({"images", "video", "audio", "3d", "text"})


def number_of(job: Job, prompt: ComfyPrompt | None) -> float:
    """Return the client's own number, or one that grows over time; negative: front of the queue."""
    if prompt is not None and prompt.number is not None:
        return prompt.number
    number = int(job.created_at.timestamp() * 1_000_000)
    return -number if prompt is not None and prompt.front else number


def queue_row(job: Job, spec: JobSpec | None) -> list[Any]:
    """Return ``[number, prompt_id, prompt, extra_data, outputs]``.

    Args:
        spec: None if the queue is too long to include graphs, or if the spec's blob is gone.
    """
    prompt = spec.comfyui if spec is not None else None
    extra: dict[str, Any] = dict(prompt.extra_data) if prompt is not None else {}
    if prompt is not None and prompt.client_id is not None:
        extra["client_id"] = prompt.client_id
    extra["create_time"] = _milliseconds(job.created_at)
    outputs = list(prompt.outputs) if prompt is not None else []
    return [number_of(job, prompt), job.id, _graph(spec), extra, outputs]


def history_entry(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """Return an entry of ``/history``; ``record`` is None if no execution has ended."""
    status = "success" if job.status is JobStatus.SUCCEEDED else "error"
    return {
        "prompt": queue_row(job, spec),
        "outputs": dict(record.outputs) if record is not None else {},
        "meta": dict(record.meta) if record is not None else {},
        "status": {
            "status_str": status,
            "completed": status == "success",
            "messages": _messages(job, record),
        },
    }


def end_message(job: Job, record: PromptRecord | None) -> tuple[str, Mapping[str, Any]]:
    """Return the type and data of the message that reports the end of an ended job.

    ComfyUI's own message is used if it reports the same outcome. Otherwise build one in its format:
    the job was cancelled while it waited, its process died, or its deadline passed.
    """
    expected = {
        JobStatus.SUCCEEDED: "execution_success",
        JobStatus.CANCELLED: "execution_interrupted",
    }.get(job.status, "execution_error")
    for name, data in reversed(record.messages if record is not None else ()):
        if name == expected:
            return name, {**data, **_canceller(job)}
    data = {"prompt_id": job.id, "timestamp": _milliseconds(job.finished_at or job.created_at)}
    if expected == "execution_success":
        return expected, data
    details = job.error.details if job.error is not None else {}
    data = {
        "prompt_id": job.id,
        # Strings even if no node failed: the frontend hides the whole history if one is null.
        "node_id": str(details.get("node_id") or ""),
        "node_type": str(details.get("node_type") or ""),
        "executed": [],
        **data,
    }
    if expected == "execution_interrupted":
        return expected, {**data, **_canceller(job)}
    return expected, {**data, **_error(job.error)}


def _canceller(job: Job) -> dict[str, Any]:
    """Return the member ``cancelled_by``, which Moyin adds to ComfyUI's interruption message."""
    if job.cancelled_by is None:
        return {}
    return {"cancelled_by": {"kind": job.cancelled_by.kind.value, "id": job.cancelled_by.id}}


def state_of(job: Job) -> str:
    """Return the job's status in ``/api/jobs``."""
    if job.status.is_final:
        return _STATES[job.status]
    return "in_progress" if job.begun_at is not None else "pending"


def job_summary(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """Return an entry of ``/api/jobs``, without members that are unknown."""
    number, _, _, extra, _ = queue_row(job, spec)
    count, preview = _outputs(record.outputs if record is not None else {})
    info = extra.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, Mapping) else None
    summary: dict[str, Any] = {
        "id": job.id,
        "status": state_of(job),
        "priority": number,
        "create_time": extra["create_time"],
        "execution_start_time": _start_time(job, record),
        "outputs_count": count,
        "preview_output": preview,
        "workflow_id": workflow.get("id") if isinstance(workflow, Mapping) else None,
    }
    if job.status.is_final:
        name, data = end_message(job, record)
        summary["execution_end_time"] = data.get("timestamp")
        summary["execution_error"] = data if name == "execution_error" else None
    return {key: value for key, value in summary.items() if value is not None}


def job_detail(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """Return the body of ``/api/jobs/{id}``."""
    _, _, graph, extra, _ = queue_row(job, spec)
    detail = job_summary(job, spec, record) | {"workflow": {"prompt": graph, "extra_data": extra}}
    if not job.status.is_final:
        return detail
    entry = history_entry(job, spec, record)
    return detail | {
        "outputs": entry["outputs"],
        "execution_status": entry["status"],
        "execution_meta": entry["meta"],
    }


def _graph(spec: JobSpec | None) -> Any:
    if spec is None or len(spec.steps) != 1:
        return {}
    return references.resolve_references(spec.steps[0].payload, ())


def _messages(job: Job, record: PromptRecord | None) -> list[list[Any]]:
    recorded = record.messages if record is not None else ()
    messages = [[name, data] for name, data in recorded if name not in _END_MESSAGES]
    return [*messages, list(end_message(job, record))]


def _error(error: JobError | None) -> dict[str, Any]:
    return {
        "exception_message": error.message if error is not None else "",
        "exception_type": error.code if error is not None else "",
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }


def _start_time(job: Job, record: PromptRecord | None) -> int | None:
    for name, data in record.messages if record is not None else ():
        if name == "execution_start" and isinstance(data.get("timestamp"), int):
            timestamp: int = data["timestamp"]
            return timestamp
    return None if job.begun_at is None else _milliseconds(job.begun_at)


def _outputs(outputs: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Return the number of outputs, and the one to display: saved files come before previews."""
    items_by_slot = [
        (slot, {"nodeId": node, "mediaType": slot, **item})
        for node, slots in outputs.items()
        if isinstance(slots, Mapping)
        for slot, items in slots.items()
        if isinstance(items, Sequence) and not isinstance(items, str)
        for item in items
        if isinstance(item, Mapping)
    ]
    displayable = [item for slot, item in items_by_slot if slot in _DISPLAYABLE_SLOTS]
    displayable.sort(key=lambda item: item.get("type") != "output")
    return len(items_by_slot), displayable[0] if displayable else None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
