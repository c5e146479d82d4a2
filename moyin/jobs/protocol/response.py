"""Converts jobs and their events to the JSON of the jobs API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.domain.job import (
    Canceller,
    EventType,
    Job,
    JobSpec,
    JobStatus,
    Progress,
    Step,
    StepKind,
    StepResult,
)
from moyin.domain.queue_place import Duration, QueuePlace
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.event_bodies import (
    ProgressEvent,
    StatusEvent,
    StepEvent,
    WebhookBody,
)

# Headers are hidden, because other keys of the tenant may read the job, but not the submitter's
# credentials.
_SHOWN_HEADERS = frozenset({"accept", "accept-language", "content-type", "prefer", "user-agent"})
_HIDDEN = "[hidden]"


def render_artifact(artifact: Artifact) -> wire.ArtifactBody:
    """Return the JSON body of a stored file for the response of its job."""
    return wire.ArtifactBody(
        id=artifact.id,
        url=f"/artifacts/{artifact.id}",
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
    )


def render_stored_artifact(stored_artifact: StoredArtifact) -> wire.ArtifactDetail:
    """Return the JSON body of a stored file for a list of files."""
    return wire.ArtifactDetail(
        **render_artifact(stored_artifact.artifact).model_dump(),
        job=stored_artifact.job_id,
        created_at=stored_artifact.created_at,
        favourite=stored_artifact.favourite,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueView:
    """The state of the queue at one moment, from which responses derive waiting times and places.

    Attributes:
        now: the time of that moment.
        places: the places of queued and running jobs, by job id.
    """

    now: datetime
    places: Mapping[str, QueuePlace] = field(default_factory=dict)


def render_job(job: Job, queue: QueueView | None = None) -> wire.JobBody:
    """Return the body of a job without its steps' outputs; without ``queue``, its place is null."""
    return wire.JobBody(**_collect_members(job, queue))


def render_job_detail(
    job: Job,
    outputs: Iterable[Mapping[str, Any]],
    spec: JobSpec | None = None,
    queue: QueueView | None = None,
) -> wire.JobDetail:
    """Return the body of a job with the outputs of its finished steps.

    Args:
        outputs: the outputs in the order of ``job.results``.
        spec: the job's spec; if None, the body lacks the submitted request and the inputs of a
            batch's children.
    """
    output_bodies = [
        wire.OutputBody(
            step=result.index,
            text=output.get("text"),
            body=output.get("body"),
            artifacts=[render_artifact(artifact) for artifact in result.artifacts],
            backend=result.backend,
            cost_usd=float(result.cost_usd),
            cached=result.cached,
            gpu_seconds=result.gpu_seconds,
            load_seconds=result.load_seconds,
        )
        for result, output in zip(job.results, outputs, strict=True)
    ]
    children = None if job.children is None else _render_children(job, spec)
    submitted_job = None if spec is None else _render_submitted(job.id, spec)
    return wire.JobDetail(
        **_collect_members(job, queue),
        outputs=output_bodies,
        children=children,
        submitted=submitted_job,
    )


def build_status_event(job: Job) -> tuple[EventType, dict[str, Any]]:
    """Return the type and data of the event that reports a job's present status."""
    return EventType(job.status.value), _build_status_body(job).model_dump(mode="json")


def build_progress_event(
    progress: Progress, node: str | None = None
) -> tuple[EventType, dict[str, Any]]:
    """Return the type and data of the event for a render's progress in the node ``node``."""
    body = ProgressEvent(value=progress.value, max=progress.max, step=progress.step, node=node)
    return EventType.PROGRESS, body.model_dump(mode="json", exclude_none=True)


def build_step_event(
    result: StepResult, attempt: int, job_progress: Progress | None = None
) -> tuple[EventType, dict[str, Any]]:
    """Return the type and data of the event for a finished step.

    Args:
        job_progress: the progress of the job; None for the last step.
    """
    body = StepEvent(
        step=result.index,
        artifacts=[render_artifact(artifact) for artifact in result.artifacts],
        value=None if job_progress is None else job_progress.value,
        max=None if job_progress is None else job_progress.max,
        attempt=attempt,
    )
    return EventType.STEP, body.model_dump(mode="json", exclude_none=True)


def build_webhook_body(job: Job) -> dict[str, Any]:
    """Return the body of an ended job's webhook, in the form that Standard Webhooks recommends."""
    body = WebhookBody.model_validate(
        {
            "type": f"job.{job.status.value}",
            "timestamp": job.finished_at or job.created_at,
            "data": _build_status_body(job),
        }
    )
    return body.model_dump(mode="json")


def _build_status_body(job: Job) -> StatusEvent:
    return StatusEvent(**_collect_members(job, None), attempt=job.attempts)


def _collect_members(job: Job, queue: QueueView | None) -> dict[str, Any]:
    error = job.error
    is_queued = job.status is JobStatus.QUEUED
    queue_place = None if queue is None or job.status.is_final else queue.places.get(job.id)
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "steps": job.steps,
        "progress": wire.ProgressBody(
            value=job.progress.value, max=job.progress.max, step=job.progress.step
        ),
        "artifacts": [render_artifact(artifact) for artifact in job.artifacts],
        "error": None
        if error is None
        else wire.ErrorBody(code=error.code, message=error.message, details=dict(error.details)),
        "node_errors": dict(job.node_errors),
        "cancelled_by": _render_canceller(job.cancelled_by),
        "cancel_requested_by": _render_canceller(job.cancel_requested_by),
        "attempts": job.attempts,
        "priority": job.priority,
        "cost_usd": float(job.cost_usd),
        "cached": job.cached,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "queued_for": _get_queued_seconds(job, queue.now) if queue and is_queued else None,
        "position": queue_place.position if queue_place and is_queued else None,
        "eta": None if queue_place is None else _render_eta(job, queue_place),
        "metadata": dict(job.metadata),
    }


def _render_submitted(job_id: str, spec: JobSpec) -> wire.SubmittedJob:
    steps = spec.steps if spec.base is None else spec.steps[:1]
    return wire.SubmittedJob(
        steps=[
            _render_step(f"/jobs/{job_id}/graph?step={index}", step, spec.base is not None)
            for index, step in enumerate(steps)
        ],
        deadline=spec.deadline,
        webhook=None if spec.webhook is None else _hide_path(spec.webhook),
    )


def _hide_path(url: str) -> str:
    """Return only the URL's scheme and host, because many services put a secret into the path."""
    url_parts = urlsplit(url)
    return f"{url_parts.scheme}://{url_parts.netloc.rpartition('@')[2]}/{_HIDDEN}"


def _render_step(graph_path: str, step: Step, is_batch: bool) -> wire.SubmittedStep:
    match step.kind:
        case StepKind.RENDER:
            # The member `children` shows the inputs that differ between the children of a batch.
            inputs = None if step.template is None or is_batch else dict(step.inputs)
            return wire.SubmittedStep(
                kind=step.kind.value,
                template=step.template,
                inputs=inputs,
                graph=graph_path,
                pool=step.pool,
                cache=step.cache,
            )
        case StepKind.CHAT:
            return wire.SubmittedStep(
                kind=step.kind.value, protocol=step.protocol, request=dict(step.payload)
            )
        case StepKind.HTTP:
            member_names = ("method", "path", "headers", "body")
            request = {name: step.payload.get(name) for name in member_names}
            request["headers"] = {
                name: value if name.lower() in _SHOWN_HEADERS else _HIDDEN
                for name, value in (request["headers"] or {}).items()
            }
            path, question_mark, _ = str(request["path"]).partition("?")
            request["path"] = path + (f"?{_HIDDEN}" if question_mark else "")
            return wire.SubmittedStep(kind=step.kind.value, request=request)


def _render_eta(job: Job, queue_place: QueuePlace) -> wire.EtaBody:
    # The place may be older than the job's start. The render's end is the job's end only if the job
    # is a single render.
    starts_in = queue_place.starts_in if job.status is JobStatus.QUEUED else None
    ends_in = queue_place.ends_in if job.steps == 1 else None
    return wire.EtaBody(starts_in=_render_seconds(starts_in), ends_in=_render_seconds(ends_in))


def _render_seconds(duration: Duration | None) -> wire.SecondsBody | None:
    if duration is None:
        return None
    return wire.SecondsBody(p50=round(duration.p50, 1), p90=round(duration.p90, 1))


def _render_canceller(canceller: Canceller | None) -> wire.CancellerBody | None:
    return None if canceller is None else wire.CancellerBody(kind=canceller.kind, id=canceller.id)


def _get_queued_seconds(job: Job, now: datetime) -> float | None:
    """Return the seconds for which a queued job has waited; None if that is unknown."""
    if job.queued_at is None:
        return None
    return round(max(0.0, (now - job.queued_at).total_seconds()), 3)


def _render_children(job: Job, spec: JobSpec | None) -> list[wire.ChildBody]:
    results_by_index = {result.index: result for result in job.results}
    failures = job.error.details.get("children", {}) if job.error is not None else {}
    children = []
    for index in range(job.children or 0):
        result, error = results_by_index.get(index), failures.get(str(index))
        progress = job.progress.parts.get(str(index))
        children.append(
            wire.ChildBody(
                index=index,
                status=_get_child_status(
                    job.status, result is not None, error is not None, progress
                ),
                inputs={} if spec is None else dict(spec.steps[index].inputs),
                progress=1.0 if result is not None else progress or 0.0,
                artifacts=[render_artifact(a) for a in result.artifacts] if result else [],
                error=None if error is None else wire.ErrorBody(**error),
                cached=result is not None and result.cached,
            )
        )
    return children


def _get_child_status(
    job: JobStatus, is_done: bool, has_failed: bool, progress: float | None
) -> JobStatus:
    if is_done:
        return JobStatus.SUCCEEDED
    if has_failed:
        return JobStatus.FAILED
    if job.is_final:
        # A child that was not done when the job ended has the job's status.
        return JobStatus.CANCELLED
    return JobStatus.QUEUED if progress is None else JobStatus.RUNNING
