"""Tests that events have the documented data."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args
from unittest.mock import AsyncMock

import pytest
from pydantic import BaseModel, ValidationError

from deployments.render.progress_reporter import ProgressReporter
from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, Job, JobStatus, Progress, StepResult
from moyin.domain.renderer import RenderProgress
from moyin.jobs.protocol.event_bodies import (
    EVENT_BODIES,
    JOB_EVENT,
    PreviewMessage,
    ProgressMessage,
    StatusMessage,
    StepMessage,
    WebhookBody,
)
from moyin.jobs.protocol.response import build_status_event, build_webhook_body
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.types import JobOutcome, StepRecord
from tests.examples import find_missing_members
from tests.waiting import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESULT = StepResult(
    index=0,
    output="o",
    artifacts=(Artifact(id="art_1", name="a", media_type="image/png", size=1, sha256="0"),),
)


def build_job(status: JobStatus) -> Job:
    return Job(
        id="j", owner="ann", kind="render", status=status, spec="s", steps=1, progress=Progress(),
        results=(RESULT,), error=None, attempts=1, priority=3, metadata={"a": "b"},
        created_at=NOW, started_at=NOW, finished_at=None,
    )  # fmt: skip


def check_event(
    event_type: EventType, data: Any, *, absent_members: frozenset[str] = frozenset()
) -> None:
    """Check that an event has exactly the documented members, with their types.

    Args:
        absent_members: documented members that this event must not have.
    """
    model: type[BaseModel] = EVENT_BODIES[event_type]
    model.model_validate(data)
    assert data.keys() == model.model_fields.keys() - absent_members


def test_every_type_of_event_is_described() -> None:
    assert EVENT_BODIES.keys() == set(EventType)


@pytest.mark.parametrize("event_type", list(EventType))
def test_a_message_of_the_websocket_has_the_data_of_its_type(event_type: EventType) -> None:
    models_by_type = {
        name: model
        for model in (StatusMessage, ProgressMessage, PreviewMessage, StepMessage)
        for name in get_args(model.model_fields["type"].annotation)
    }
    assert (
        models_by_type[event_type.value].model_fields["data"].annotation is EVENT_BODIES[event_type]
    )
    assert models_by_type.keys() == {*EventType}


def test_a_message_is_parsed_by_its_type() -> None:
    data = {"value": 1, "max": 2, "step": 0}
    message = JOB_EVENT.validate_python({"id": "1-0", "type": "progress", "data": data})
    assert isinstance(message, ProgressMessage)
    with pytest.raises(ValidationError):
        JOB_EVENT.validate_python({"id": "1-0", "type": "step", "data": data})


def test_a_webhook_has_the_documented_data() -> None:
    job = build_job(JobStatus.SUCCEEDED)
    body = build_webhook_body(job)
    WebhookBody.model_validate(body)
    assert (body["type"], body["timestamp"]) == ("job.succeeded", "2026-01-01T00:00:00Z")
    assert body["data"] == build_status_event(job)[1]
    assert find_missing_members("docs/jobs.md", "webhook", body) == []


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_status_event_has_the_documented_data(status: JobStatus) -> None:
    check_event(*build_status_event(build_job(status)))


async def test_a_step_event_has_the_documented_data() -> None:
    jobs, events, frames = AsyncMock(), AsyncMock(), AsyncMock()
    jobs.record_step.return_value = Progress(value=1, max=2)
    writer = JobStatusWriter(jobs=jobs, events=events, frames=frames)
    await writer.record_step(StepRecord(job_id="j", attempt=1, result=RESULT))
    _, kind, data = events.publish.call_args.args
    assert kind is EventType.STEP
    check_event(kind, data)


async def test_the_event_of_the_last_step_has_no_progress() -> None:
    jobs, events, frames = AsyncMock(), AsyncMock(), AsyncMock()
    jobs.finish.return_value = build_job(JobStatus.SUCCEEDED)
    outcome = JobOutcome(
        job_id="j", owner="ann", attempt=1, status=JobStatus.SUCCEEDED, results=(RESULT,)
    )
    await JobStatusWriter(jobs=jobs, events=events, frames=frames).finish(outcome)
    _, published_events = events.publish_all.call_args.args
    assert [kind for kind, _ in published_events] == [EventType.STEP, EventType.SUCCEEDED]
    check_event(*published_events[0], absent_members=frozenset({"value", "max"}))
    check_event(*published_events[1])


@pytest.mark.parametrize("node", [None, "7"])
async def test_a_progress_event_has_the_documented_data(node: str | None) -> None:
    jobs, events = AsyncMock(), AsyncMock()
    async with ProgressReporter(
        jobs, events, job_id="j", attempt=1, step=0, mark_started=AsyncMock(return_value=True)
    ) as reporter:
        reporter.start()
        reporter.report(RenderProgress(value=1, max=2, node=node))
        await eventually(lambda: events.publish.call_count, seconds=10)
    _, kind, data = events.publish.call_args.args
    assert kind is EventType.PROGRESS
    check_event(kind, data, absent_members=frozenset({"node"} if node is None else ()))
