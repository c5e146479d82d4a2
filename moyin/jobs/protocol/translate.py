"""The jobs API to and from the domain; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from pydantic import ValidationError

from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, Job, JobSpec, JobStatus, Step, StepKind
from moyin.domain.serialization import encode
from moyin.errors import InvalidRequest
from moyin.http.public_addresses import check_url
from moyin.http.validation import parse_json
from moyin.jobs.protocol import chat, wire
from moyin.jobs.protocol.paths import check_path
from moyin.jobs.protocol.renders import Templates, no_templates, render_batch, render_step

__all__ = [
    "artifact_body",
    "event_of",
    "fingerprint",
    "job_body",
    "job_detail",
    "parse_job",
    "read_job",
    "to_spec",
]

Asked: TypeAlias = wire.ChatJob | wire.RenderJob | wire.HttpJob | wire.PipelineJob
_KINDS = frozenset({"pipeline", *(kind.value for kind in StepKind)})


def parse_job(body: bytes, now: datetime, templates: Templates = no_templates) -> JobSpec:
    """The job that the JSON ``body`` of a request asks for.

    Args:
        now: aware; a deadline must lie after it.
        templates: finds the template that a render names.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: it may hold too many values.
        InvalidRequest: naming the field.
    """
    return to_spec(read_job(body), now, templates)


def read_job(body: bytes) -> Asked:
    """The request in the JSON ``body``, as far as it can be checked on its own.

    Raises:
        InvalidJson, BodyTooLarge, InvalidRequest: see `parse_job`.
    """
    data = parse_json(body)
    try:
        return wire.JOB_REQUEST.validate_python(data)
    except ValidationError as error:
        raise _invalid(error) from None


def to_spec(request: Asked, now: datetime, templates: Templates = no_templates) -> JobSpec:
    """The domain form of a request, checked as far as that needs no other process.

    Raises:
        InvalidRequest: naming the field.
    """
    if request.deadline is not None and request.deadline <= now:
        raise InvalidRequest("deadline must lie in the future", field="deadline")
    if request.webhook is not None:
        check_url(request.webhook, field="webhook")
    base = None
    if isinstance(request, wire.RenderJob) and request.batch is not None:
        base, steps = render_batch(request, request.batch, templates)
    else:
        steps = _steps(request, templates)
    return JobSpec(
        kind=request.kind,
        steps=steps,
        base=base,
        priority=request.priority,
        deadline=request.deadline,
        metadata=request.metadata,
        webhook=request.webhook,
    )


def _steps(request: Asked, templates: Templates) -> tuple[Step, ...]:
    asked: Sequence[wire.ChatStep | wire.RenderStep | wire.HttpStep]
    asked = request.steps if isinstance(request, wire.PipelineJob) else [request]
    prefixes = [f"steps.{i}." for i in range(len(asked))]
    if not isinstance(request, wire.PipelineJob):
        prefixes = [""]
    steps = tuple(
        _step(step, prefix, request.pool, templates)
        for step, prefix in zip(asked, prefixes, strict=True)
    )
    for index, step in enumerate(steps):
        references.check(step.payload, index)
    return steps


def fingerprint(asked: Asked | JobSpec) -> str:
    """Equal for requests that ask for the same, however they are written; sha256 in hex. Of a
    request that names a template, whatever that holds by now, which its spec would not be."""
    if isinstance(asked, JobSpec):
        return hashlib.sha256(encode(asked)).hexdigest()
    return hashlib.sha256(asked.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def artifact_body(artifact: Artifact) -> wire.ArtifactBody:
    return wire.ArtifactBody(
        id=artifact.id,
        url=f"/artifacts/{artifact.id}",
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
    )


def job_body(job: Job) -> wire.JobBody:
    """A job without the outputs of its steps."""
    return wire.JobBody(**_members(job))


def job_detail(
    job: Job, outputs: Iterable[Mapping[str, Any]], spec: JobSpec | None = None
) -> wire.JobDetail:
    """A job with the outputs of its finished steps, in the order of ``job.results``.

    Args:
        spec: of a batch, which says what sets its children apart.
    """
    bodies = [
        wire.OutputBody(
            step=result.index,
            text=output.get("text"),
            body=output.get("body"),
            artifacts=[artifact_body(artifact) for artifact in result.artifacts],
            backend=result.backend,
            cost_usd=float(result.cost_usd),
            cached=result.cached,
        )
        for result, output in zip(job.results, outputs, strict=True)
    ]
    children = None if job.children is None else _children(job, spec)
    return wire.JobDetail(**_members(job), outputs=bodies, children=children)


def event_of(job: Job) -> tuple[EventType, dict[str, Any]]:
    """The event that tells the job's present status; its data is the whole job.

    ``attempt`` tells the end of an earlier attempt from the end of the job.
    """
    data = job_body(job).model_dump(mode="json")
    return EventType(job.status.value), {**data, "attempt": job.attempts}


def _members(job: Job) -> dict[str, Any]:
    error = job.error
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "steps": job.steps,
        "progress": wire.ProgressBody(
            value=job.progress.value, max=job.progress.max, step=job.progress.step
        ),
        "artifacts": [artifact_body(artifact) for artifact in job.artifacts],
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


def _children(job: Job, spec: JobSpec | None) -> list[wire.ChildBody]:
    done = {result.index: result for result in job.results}
    failed = job.error.details.get("children", {}) if job.error is not None else {}
    children = []
    for index in range(job.children or 0):
        result, error = done.get(index), failed.get(str(index))
        part = job.progress.parts.get(str(index))
        children.append(
            wire.ChildBody(
                index=index,
                status=_child_status(job.status, result is not None, error is not None, part),
                inputs={} if spec is None else dict(spec.steps[index].inputs),
                progress=1.0 if result is not None else part or 0.0,
                artifacts=[artifact_body(a) for a in result.artifacts] if result else [],
                error=None if error is None else wire.ErrorBody(**error),
                cached=result is not None and result.cached,
            )
        )
    return children


def _child_status(job: JobStatus, done: bool, failed: bool, part: float | None) -> JobStatus:
    if done:
        return JobStatus.SUCCEEDED
    if failed:
        return JobStatus.FAILED
    if job.is_final:
        # The job's end was its end, too.
        return JobStatus.CANCELLED
    return JobStatus.QUEUED if part is None else JobStatus.RUNNING


def _step(
    step: wire.ChatStep | wire.RenderStep | wire.HttpStep,
    prefix: str,
    pool: str | None,
    templates: Templates,
) -> Step:
    if isinstance(step, wire.RenderStep):
        return render_step(step, prefix, pool, templates)
    if isinstance(step, wire.HttpStep):
        if "${" not in step.request.path:
            check_path(step.request.path, field=f"{prefix}request.path")
        return Step(kind=StepKind.HTTP, payload=step.request.model_dump())
    chat.check(step.protocol, step.request, f"{prefix}request")
    return Step(kind=StepKind.CHAT, payload=step.request, protocol=step.protocol)


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = _field(first["loc"])
    if first["type"].startswith("union_tag"):
        field = f"{field}.kind" if field else "kind"
    return InvalidRequest(f"{field or 'the body'}: {first['msg']}", field=field or None)


def _field(location: Sequence[int | str]) -> str:
    """The path as the client wrote it: without the union tags that pydantic puts in."""
    parts = [
        part
        for i, part in enumerate(location)
        if not (part in _KINDS and (i == 0 or isinstance(location[i - 1], int)))
    ]
    return ".".join(str(part) for part in parts)
