"""Translates requests of the jobs API to `JobSpec`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from pydantic import ValidationError

from moyin.domain import references
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.domain.serialization import encode
from moyin.errors import InvalidRequest
from moyin.http.public_addresses import check_url
from moyin.http.validation import parse_json
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.renders import (
    Templates,
    refuse_templates,
    translate_render_batch,
    translate_render_step,
)
from moyin.jobs.protocol.step_outputs import check_referenced_outputs
from moyin.jobs.protocol.step_requests import check_chat_request, check_step_path

JobBody: TypeAlias = wire.ChatJob | wire.RenderJob | wire.HttpJob | wire.PipelineJob
_KINDS = frozenset({"pipeline", *(kind.value for kind in StepKind)})


def parse_job(body: bytes, now: datetime, templates: Templates = refuse_templates) -> JobSpec:
    """Translate the JSON body of a request to a job.

    Args:
        now: the current time with a time zone; deadlines must be later.
        templates: a function that returns the template with the given name.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: the body has too many JSON values.
        InvalidRequest: a field is invalid.
    """
    return to_job_spec(parse_job_body(body), now, templates)


def parse_job_body(body: bytes) -> JobBody:
    """Parse the JSON body of a request and check its members; raises the errors of `parse_job`."""
    data = parse_json(body)
    try:
        return wire.JOB_REQUEST.validate_python(data)
    except ValidationError as error:
        raise _to_invalid_request(error) from None


def is_batch(request: JobBody) -> bool:
    """Return True if the job has a child, with a graph of its own, for each item of a batch."""
    return isinstance(request, wire.RenderJob) and request.batch is not None


def requires_valid_outputs(request: JobBody) -> bool:
    """Return True if a graph with an invalid output beside valid ones must be refused."""
    return isinstance(request, wire.RenderJob | wire.PipelineJob) and request.strict


def to_job_spec(
    request: JobBody, now: datetime, templates: Templates = refuse_templates
) -> JobSpec:
    """Translate a parsed request to a job; raises InvalidRequest if a field is invalid."""
    if request.deadline is not None and request.deadline <= now:
        raise InvalidRequest(
            f"deadline must be later than the current time, {now.isoformat()}", field="deadline"
        )
    if request.webhook is not None:
        check_url(request.webhook, field="webhook")
    base_graph = None
    if isinstance(request, wire.RenderJob) and request.batch is not None:
        base_graph, steps = translate_render_batch(request, request.batch, templates)
    else:
        steps = _to_steps(request, templates)
    return JobSpec(
        kind=request.kind,
        steps=steps,
        base=base_graph,
        priority=request.priority,
        deadline=request.deadline,
        metadata=request.metadata,
        webhook=request.webhook,
    )


def _to_steps(request: JobBody, templates: Templates) -> tuple[Step, ...]:
    step_bodies: Sequence[wire.ChatStep | wire.RenderStep | wire.HttpStep]
    if isinstance(request, wire.PipelineJob):
        step_bodies, prefixes = request.steps, [f"steps.{i}." for i in range(len(request.steps))]
    else:
        step_bodies, prefixes = [request], [""]
    steps = tuple(
        _to_step(step, prefix, request.pool, templates)
        for step, prefix in zip(step_bodies, prefixes, strict=True)
    )
    for index, step in enumerate(steps):
        references.check_references(step.payload, index)
        check_referenced_outputs(step, steps[:index], prefixes[index])
    return steps


def compute_fingerprint(request: JobBody | JobSpec) -> str:
    """Return a sha256 in hex that is equal for requests with equal members, in any order.

    The fingerprint of a `JobSpec` changes when its template changes. The fingerprint of a parsed
    request does not, because the request contains only the template's name.
    """
    if isinstance(request, JobSpec):
        return hashlib.sha256(encode(request)).hexdigest()
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _to_step(
    step: wire.ChatStep | wire.RenderStep | wire.HttpStep,
    prefix: str,
    pool: str | None,
    templates: Templates,
) -> Step:
    if isinstance(step, wire.RenderStep):
        return translate_render_step(step, prefix, pool, templates)
    if isinstance(step, wire.HttpStep):
        if "${" not in step.request.path:
            check_step_path(step.request.path, field=f"{prefix}request.path")
        return Step(kind=StepKind.HTTP, payload=step.request.model_dump())
    check_chat_request(step.protocol, step.request, f"{prefix}request")
    return Step(kind=StepKind.CHAT, payload=step.request, protocol=step.protocol)


def _to_invalid_request(error: ValidationError) -> InvalidRequest:
    first_error = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = _join_field_path(first_error["loc"])
    if first_error["type"].startswith("union_tag"):
        field = f"{field}.kind" if field else "kind"
    return InvalidRequest(f"{field or 'the body'}: {first_error['msg']}", field=field or None)


def _join_field_path(location: Sequence[int | str]) -> str:
    """Return the path of an invalid field, without the tags that pydantic inserts for unions."""
    path_parts = [
        part
        for i, part in enumerate(location)
        if not (part in _KINDS and (i == 0 or isinstance(location[i - 1], int)))
    ]
    return ".".join(str(part) for part in path_parts)
