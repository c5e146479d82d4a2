"""Jobs in the shapes of ComfyUI's queue, history and job list; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from moyin.domain import references
from moyin.domain.job import Job, JobError, JobSpec, JobStatus
from moyin.domain.prompt import ComfyPrompt, PromptRecord

__all__ = [
    "ending",
    "history_entry",
    "job_detail",
    "job_summary",
    "number_of",
    "queue_row",
    "state_of",
]

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
_ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
_STATES = {
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
# What the frontend can show of an output's slot.
_SHOWN = frozenset({"images", "video", "audio", "3d", "text"})


def number_of(job: Job, asked: ComfyPrompt | None) -> float:
    """The client's own number, or one that grows with every prompt; negative: to the front."""
    if asked is not None and asked.number is not None:
        return asked.number
    number = int(job.created_at.timestamp() * 1_000_000)
    return -number if asked is not None and asked.front else number


def queue_row(job: Job, spec: JobSpec | None) -> list[Any]:
    """``[number, prompt_id, prompt, extra_data, outputs]``.

    Args:
        spec: None: too long a queue to show what is in it, or its blob is gone.
    """
    asked = spec.comfyui if spec is not None else None
    extra: dict[str, Any] = dict(asked.extra_data) if asked is not None else {}
    if asked is not None and asked.client_id is not None:
        extra["client_id"] = asked.client_id
    extra["create_time"] = _milliseconds(job.created_at)
    outputs = list(asked.outputs) if asked is not None else []
    return [number_of(job, asked), job.id, _graph(spec), extra, outputs]


def history_entry(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """An entry of ``/history``. ``record``: None when no execution came to an end."""
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


def ending(job: Job, record: PromptRecord | None) -> tuple[str, Mapping[str, Any]]:
    """The event that tells the end of an ended job.

    ComfyUI's own, where it speaks of the same end; else one that says in its words what became of
    the job where ComfyUI did not know: cancelled while it waited, lost with its process, too late.
    """
    expected = {
        JobStatus.SUCCEEDED: "execution_success",
        JobStatus.CANCELLED: "execution_interrupted",
    }.get(job.status, "execution_error")
    for name, data in reversed(record.messages if record is not None else ()):
        if name == expected:
            return name, {**data, **_canceller(job)}
    told = {"prompt_id": job.id, "timestamp": _milliseconds(job.finished_at or job.created_at)}
    if expected == "execution_success":
        return expected, told
    details = job.error.details if job.error is not None else {}
    told = {
        "prompt_id": job.id,
        # Texts even where no node is to blame: the frontend shows no history at all that has a null.
        "node_id": str(details.get("node_id") or ""),
        "node_type": str(details.get("node_type") or ""),
        "executed": [],
        **told,
    }
    if expected == "execution_interrupted":
        return expected, {**told, **_canceller(job)}
    return expected, {**told, **_error(job.error)}


def _canceller(job: Job) -> dict[str, Any]:
    """Return the member that an interruption has here and not in ComfyUI."""
    if job.cancelled_by is None:
        return {}
    return {"cancelled_by": {"kind": job.cancelled_by.kind.value, "id": job.cancelled_by.id}}


def state_of(job: Job) -> str:
    """The job's status in ``/api/jobs``."""
    if job.status.is_final:
        return _STATES[job.status]
    return "in_progress" if job.begun_at is not None else "pending"


def job_summary(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """An entry of ``/api/jobs``; members that are not known are left out."""
    number, _, _, extra, _ = queue_row(job, spec)
    count, preview = _outputs(record.outputs if record is not None else {})
    info = extra.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, Mapping) else None
    told: dict[str, Any] = {
        "id": job.id,
        "status": state_of(job),
        "priority": number,
        "create_time": extra["create_time"],
        "execution_start_time": _started(job, record),
        "outputs_count": count,
        "preview_output": preview,
        "workflow_id": workflow.get("id") if isinstance(workflow, Mapping) else None,
    }
    if job.status.is_final:
        name, data = ending(job, record)
        told["execution_end_time"] = data.get("timestamp")
        told["execution_error"] = data if name == "execution_error" else None
    return {key: value for key, value in told.items() if value is not None}


def job_detail(job: Job, spec: JobSpec | None, record: PromptRecord | None) -> dict[str, Any]:
    """``/api/jobs/{id}``."""
    row = queue_row(job, spec)
    told = job_summary(job, spec, record) | {"workflow": {"prompt": row[2], "extra_data": row[3]}}
    if not job.status.is_final:
        return told
    entry = history_entry(job, spec, record)
    return told | {
        "outputs": entry["outputs"],
        "execution_status": entry["status"],
        "execution_meta": entry["meta"],
    }


def _graph(spec: JobSpec | None) -> Any:
    if spec is None or len(spec.steps) != 1:
        return {}
    return references.resolve(spec.steps[0].payload, ())


def _messages(job: Job, record: PromptRecord | None) -> list[list[Any]]:
    told = [[name, data] for name, data in record.messages] if record is not None else []
    kept = [message for message in told if message[0] not in _ENDINGS]
    return [*kept, list(ending(job, record))]


def _error(error: JobError | None) -> dict[str, Any]:
    return {
        "exception_message": error.message if error is not None else "",
        "exception_type": error.code if error is not None else "",
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }


def _started(job: Job, record: PromptRecord | None) -> int | None:
    for name, data in record.messages if record is not None else ():
        if name == "execution_start" and isinstance(data.get("timestamp"), int):
            started: int = data["timestamp"]
            return started
    return None if job.begun_at is None else _milliseconds(job.begun_at)


def _outputs(outputs: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """How many things were put out, and the one to show: a saved file before a preview."""
    found = [
        (slot, {"nodeId": node, "mediaType": slot, **item})
        for node, slots in outputs.items()
        if isinstance(slots, Mapping)
        for slot, items in slots.items()
        if isinstance(items, Sequence) and not isinstance(items, str)
        for item in items
        if isinstance(item, Mapping)
    ]
    shown = [item for slot, item in found if slot in _SHOWN]
    shown.sort(key=lambda item: item.get("type") != "output")
    return len(found), shown[0] if shown else None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
