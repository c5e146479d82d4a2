"""Tests that a step's activity records its start and its result in a real database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, Job, JobError, JobStatus, StepKind, StepResult
from moyin.jobs.workflows.failures import SUPERSEDED
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.types import JobOutcome, StepInput, StepOutcome
from moyin.store.jobs import JobStore, NewJob
from moyin.store.sql import Database

RESULT = StepResult(
    index=0,
    output="out0",
    artifacts=(Artifact(id="art_1", name="a", media_type="image/png", size=1, sha256="0" * 64),),
)


class EventCollector:
    """Collects the published events in order."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        self.kinds.append(kind.value)

    async def publish_all(self, job_id: str, events: Sequence[tuple[EventType, Any]]) -> None:
        self.kinds.extend(kind.value for kind, _ in events)

    async def publish_end(self, job: Job) -> None:
        self.kinds.append("end of frames")


class WriterHarness:
    def __init__(self, database: Database) -> None:
        self.jobs = JobStore(database)
        self.watchers = EventCollector()
        watchers: Any = self.watchers
        self.ended_jobs: list[Job] = []
        self.writer = JobStatusWriter(
            jobs=self.jobs, events=watchers, frames=watchers, on_end=self.ended_jobs.append
        )
        self.run_count = 0

    async def create_job(self, step_count: int = 1) -> StepInput:
        """Create a queued job with ``step_count`` steps, and return its first step."""
        job_id = str(uuid.uuid4())
        heads = ((StepKind.HTTP, "default"),) * step_count
        await self.jobs.create(NewJob(id=job_id, owner="ann", kind="http", spec="s", heads=heads))
        return StepInput(
            job_id=job_id, owner="ann", index=0, spec="s", begins=1, attempt=1, last=step_count == 1
        )

    async def run_step(
        self,
        step: StepInput,
        *,
        attempt: int = 1,
        work: Callable[[], Awaitable[Any]] | None = None,
        starts_at_once: bool = True,
    ) -> StepOutcome:
        async def execute_step() -> StepResult:
            self.run_count += 1
            if work is not None:
                await work()
            return replace(RESULT, index=step.index, output=f"out{step.index}")

        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=attempt)
        run_in_activity = partial(self.writer.run_step, starts_at_once=starts_at_once)
        outcome: StepOutcome = await environment.run(run_in_activity, step, execute_step)
        return outcome


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[WriterHarness]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield WriterHarness(database)
    await database.close()


def fail(*_: Any, **__: Any) -> Any:
    raise OperationalError("update", {}, Exception("the database is away"))


async def test_the_only_step_starts_and_ends_the_job(harness: WriterHarness) -> None:
    step = await harness.create_job()
    assert await harness.run_step(step) == StepOutcome(result=RESULT, recorded=True)
    job = await harness.jobs.find(step.job_id)
    assert (job.status, job.results) == (JobStatus.SUCCEEDED, (RESULT,))
    assert harness.watchers.kinds == ["running", "step", "succeeded", "end of frames"]


async def test_every_step_is_a_checkpoint_and_the_last_one_ends_the_job(
    harness: WriterHarness,
) -> None:
    step = await harness.create_job(step_count=2)
    await harness.run_step(step)
    job = await harness.jobs.find(step.job_id)
    assert (job.status, [r.output for r in job.results]) == (JobStatus.RUNNING, ["out0"])
    await harness.run_step(replace(step, index=1, begins=None, last=True))
    job = await harness.jobs.find(step.job_id)
    assert (job.status, [r.output for r in job.results]) == (JobStatus.SUCCEEDED, ["out0", "out1"])
    assert harness.watchers.kinds == ["running", "step", "step", "succeeded", "end of frames"]


@pytest.mark.parametrize("step_count", [1, 2])
async def test_a_retry_after_a_lost_try_returns_the_recorded_result(
    harness: WriterHarness, step_count: int
) -> None:
    step = await harness.create_job(step_count)
    first_outcome = await harness.run_step(step)
    published_kinds = harness.watchers.kinds[1:]
    assert await harness.run_step(step, attempt=2) == first_outcome
    assert harness.run_count == 1, "the step does not run again"
    assert harness.watchers.kinds[1:] == [*published_kinds, *published_kinds], (
        "the events may have been lost"
    )


async def test_a_lost_try_that_still_runs_may_end_the_job(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, original_start = await harness.create_job(), harness.jobs.start

    async def start_after_the_run(*args: Any) -> Any:
        monkeypatch.undo()
        await harness.run_step(step)
        return await original_start(*args)

    monkeypatch.setattr(harness.jobs, "start", start_after_the_run)
    assert await harness.run_step(step, attempt=2) == StepOutcome(result=RESULT, recorded=True)
    assert harness.run_count == 1


async def test_the_end_of_a_deleted_job_is_neither_written_nor_published(
    harness: WriterHarness,
) -> None:
    step = await harness.create_job()
    await harness.run_step(step)
    await harness.jobs.delete("ann", [step.job_id])
    published_kinds = list(harness.watchers.kinds)
    outcome = JobOutcome(
        job_id=step.job_id, owner="ann", attempt=1, status=JobStatus.FAILED, error=None, results=()
    )
    assert await harness.writer.finish(outcome) is False
    assert harness.watchers.kinds == published_kinds


async def test_a_retry_runs_the_step_if_no_result_was_recorded(harness: WriterHarness) -> None:
    step = await harness.create_job()

    async def crash() -> None:
        raise RuntimeError("the worker is lost")

    with pytest.raises(RuntimeError):
        await harness.run_step(step, work=crash)
    assert await harness.run_step(step, attempt=2) == StepOutcome(result=RESULT, recorded=True)
    assert harness.run_count == 2


async def test_a_result_that_cannot_be_recorded_is_left_to_the_workflow(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = await harness.create_job()

    async def break_store() -> None:
        monkeypatch.setattr(harness.jobs, "finish", fail)

    assert await harness.run_step(step, work=break_store) == StepOutcome(
        result=RESULT, recorded=False
    )
    monkeypatch.undo()
    assert (await harness.jobs.find(step.job_id)).status is JobStatus.RUNNING


async def test_a_step_of_an_ended_attempt_does_not_run(harness: WriterHarness) -> None:
    step = await harness.create_job()
    await harness.jobs.finish(step.job_id, 1, JobStatus.CANCELLED, None)
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_step(step)
    assert (exc_info.value.type, exc_info.value.non_retryable, harness.run_count) == (
        SUPERSEDED,
        True,
        0,
    )


async def test_a_render_that_waits_is_queued_until_it_is_marked_as_started(
    harness: WriterHarness,
) -> None:
    step = await harness.create_job()
    statuses: list[JobStatus] = []

    async def start_late() -> None:
        statuses.append((await harness.jobs.find(step.job_id)).status)
        assert await harness.writer.mark_started(step)
        assert not await harness.writer.mark_started(step)
        statuses.append((await harness.jobs.find(step.job_id)).status)

    await harness.run_step(step, work=start_late, starts_at_once=False)
    assert statuses == [JobStatus.QUEUED, JobStatus.RUNNING]
    assert harness.watchers.kinds == ["running", "step", "succeeded", "end of frames"]


async def test_a_waiting_render_of_an_ended_attempt_does_not_run(harness: WriterHarness) -> None:
    step = await harness.create_job()
    await harness.jobs.finish(step.job_id, 1, JobStatus.CANCELLED, None)
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_step(step, starts_at_once=False)
    assert (exc_info.value.type, harness.run_count) == (SUPERSEDED, 0)


async def test_a_worker_lost_while_the_render_waits_leaves_it_queued(
    harness: WriterHarness,
) -> None:
    step = await harness.create_job()

    async def crash() -> None:
        raise RuntimeError("the worker is lost")

    with pytest.raises(RuntimeError):
        await harness.run_step(step, work=crash, starts_at_once=False)
    job = await harness.jobs.find(step.job_id)
    assert (job.status, job.started_at) == (JobStatus.QUEUED, None)
    mark_started = partial(harness.writer.mark_started, step)
    await harness.run_step(step, attempt=2, work=mark_started, starts_at_once=False)
    assert harness.watchers.kinds == ["running", "step", "succeeded", "end of frames"]


@pytest.mark.parametrize("step_count", [1, 2])
async def test_a_step_of_a_superseded_attempt_records_nothing(
    harness: WriterHarness, step_count: int
) -> None:
    step = await harness.create_job(step_count)

    async def retry_job() -> None:
        error = JobError(code="worker_lost", message="gone")
        await harness.jobs.finish(step.job_id, 1, JobStatus.FAILED, error)
        await harness.jobs.reopen("ann", step.job_id)

    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_step(step, work=retry_job)
    assert (exc_info.value.type, exc_info.value.non_retryable) == (SUPERSEDED, True)
    job = await harness.jobs.find(step.job_id)
    assert (job.status, job.attempts, job.results) == (JobStatus.QUEUED, 2, ())


async def test_a_result_after_the_end_is_not_published(harness: WriterHarness) -> None:
    step = await harness.create_job()

    async def cancel_job() -> None:
        await harness.jobs.finish(step.job_id, 1, JobStatus.CANCELLED, None)

    await harness.run_step(step, work=cancel_job)
    assert (await harness.jobs.find(step.job_id)).results == ()
    assert harness.watchers.kinds == ["running", "cancelled", "end of frames"]


async def test_a_cancellation_waits_until_the_result_is_recorded(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = await harness.create_job()
    is_writing, may_proceed, original_finish = asyncio.Event(), asyncio.Event(), harness.jobs.finish

    async def finish_slowly(*args: Any, **kwargs: Any) -> Any:
        is_writing.set()
        await may_proceed.wait()
        return await original_finish(*args, **kwargs)

    monkeypatch.setattr(harness.jobs, "finish", finish_slowly)
    running_step = asyncio.create_task(harness.run_step(step))
    await is_writing.wait()
    running_step.cancel()
    await asyncio.sleep(0)
    may_proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await running_step
    assert (await harness.jobs.find(step.job_id)).status is JobStatus.SUCCEEDED
    assert harness.watchers.kinds[-1] == "end of frames"
