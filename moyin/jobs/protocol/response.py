"""Renders jobs and their events in the JSON format of the jobs API; without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, Job, JobSpec, JobStatus
from moyin.jobs.protocol import wire


def render_artifact(artifact: Artifact) -> wire.ArtifactBody:
    """Render a stored file as a member of a job's response."""
    return wire.ArtifactBody(
        id=artifact.id,
        url=f"/artifacts/{artifact.id}",
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
    )


def render_job(job: Job) -> wire.JobBody:
    """Render a job without the outputs of its steps."""
    return wire.JobBody(**_collect_members(job))


def render_job_detail(
    job: Job, outputs: Iterable[Mapping[str, Any]], spec: JobSpec | None = None
) -> wire.JobDetail:
    """Render a job with the outputs of its finished steps.

    Args:
        outputs: the outputs in the order of ``job.results``.
        spec: the spec of a batch, which has the inputs of the children.
    """
    bodies = [
        wire.OutputBody(
            step=result.index,
            text=output.get("text"),
            body=output.get("body"),
            artifacts=[render_artifact(artifact) for artifact in result.artifacts],
            backend=result.backend,
            cost_usd=float(result.cost_usd),
            cached=result.cached,
        )
        for result, output in zip(job.results, outputs, strict=True)
    ]
    children = None if job.children is None else _render_children(job, spec)
    return wire.JobDetail(**_collect_members(job), outputs=bodies, children=children)


def build_status_event(job: Job) -> tuple[EventType, dict[str, Any]]:
    """Return the type and data of the event for the job's status, with the number of the attempt."""
    data = render_job(job).model_dump(mode="json")
    return EventType(job.status.value), {**data, "attempt": job.attempts}


def _collect_members(job: Job) -> dict[str, Any]:
    error = job.error
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
        "cancelled_by": None
        if job.cancelled_by is None
        else wire.CancellerBody(kind=job.cancelled_by.kind, id=job.cancelled_by.id),
        "attempts": job.attempts,
        "priority": job.priority,
        "cost_usd": float(job.cost_usd),
        "cached": job.cached,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "metadata": dict(job.metadata),
    }


def _render_children(job: Job, spec: JobSpec | None) -> list[wire.ChildBody]:
    results = {result.index: result for result in job.results}
    failures = job.error.details.get("children", {}) if job.error is not None else {}
    children = []
    for index in range(job.children or 0):
        result, error = results.get(index), failures.get(str(index))
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
        # The child ended with the job.
        return JobStatus.CANCELLED
    return JobStatus.QUEUED if progress is None else JobStatus.RUNNING
