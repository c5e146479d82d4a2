"""Defines `JobStatusWriter`, which writes a job's status to its row and publishes it to watchers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity
from temporalio.exceptions import ApplicationError

from moyin.domain.job import EventType, JobStatus, StepResult
from moyin.jobs.protocol.response import artifact_body, event_of
from moyin.jobs.workflows.failures import SUPERSEDED
from moyin.jobs.workflows.policies import RECORD_TIMEOUT
from moyin.jobs.workflows.shield import run_to_completion
from moyin.jobs.workflows.types import JobOutcome, StepDone, StepInput, StepRecord
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore

__all__ = ["JobStatusWriter"]

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 2.0


class JobStatusWriter:
    """Records the progress of jobs; used by the activities of every worker."""

    def __init__(self, *, jobs: JobStore, events: EventStore, frames: FrameStore) -> None:
        self._jobs = jobs
        self._events = events
        self._frames = frames

    async def run_step(
        self, step: StepInput, work: Callable[[], Awaitable[StepResult]]
    ) -> StepDone:
        """Run a step inside its activity, and record its beginning and its result.

        The activity does this itself, because separate activities would cost as much as a small
        picture. If the database is unavailable when the step is done, the workflow records the
        result later. If an earlier, lost try of the activity recorded a result, that result is
        returned and the step does not run again. Its events are published again, since the worker
        may have been lost before it published them.

        Raises:
            ApplicationError: the attempt has ended, or a later one has begun
                (`moyin.jobs.workflows.failures.is_superseded`).
        """
        result = await self._begin(step) or await work()
        return StepDone(result=result, recorded=await run_to_completion(self._settle(step, result)))

    async def record_step(self, record: StepRecord) -> bool:
        """Write a step's checkpoint; return False if the attempt is over."""
        progress = await self._jobs.record_step(record.job_id, record.attempt, record.result)
        if progress is not None:
            kind, data = _step_event(record.result, record.attempt)
            overall = {"value": progress.value, "max": progress.max}
            await self._events.publish(record.job_id, kind, {**data, **overall})
        return progress is not None

    async def finish(self, outcome: JobOutcome) -> bool:
        """Write the attempt's end; return True once the attempt has ended, also when repeated.

        The first end that was written is kept: a cancellation may arrive while one is written.
        """
        job = await self._jobs.finish(
            outcome.job_id,
            outcome.attempt,
            outcome.status,
            outcome.error,
            results=outcome.results,
        ) or await self._jobs.find(outcome.job_id)
        if job.attempts != outcome.attempt or not job.status.is_final:
            return False
        # The row of a job that was cancelled meanwhile has neither the result nor its artifacts.
        last_result = outcome.results[-1:] if job.status is outcome.status else ()
        steps = [_step_event(result, outcome.attempt) for result in last_result]
        await self._events.publish_all(job.id, [*steps, event_of(job)])
        await self._frames.publish_end(job)
        return True

    async def _start(self, job_id: str, attempt: int) -> bool:
        """Mark the job as running and publish that once; return False if the attempt is over."""
        job = await self._jobs.start(job_id, attempt)
        if job is None:
            return await self._jobs.is_open(job_id, attempt)
        await self._events.publish(job_id, *event_of(job))
        return True

    async def _begin(self, step: StepInput) -> StepResult | None:
        """Return the result that a lost try of the step recorded; None: the step has to run."""
        while True:
            try:
                is_running = step.begins is None or await self._start(step.job_id, step.begins)
                # Read only now: the lost try may still run, and record the end of the attempt.
                recorded = await self._recorded_result(step)
                break
            except (SQLAlchemyError, OSError) as error:
                # Nothing has been done yet, so waiting for the database costs nothing.
                _log.warning("job %s waits for the database: %s", step.job_id, error)
                await asyncio.sleep(_PAUSE_SECONDS)
        if recorded is None and not is_running:
            raise _superseded()
        return recorded

    async def _recorded_result(self, step: StepInput) -> StepResult | None:
        if activity.info().attempt == 1:
            return None
        job = await self._jobs.find(step.job_id)
        if job.attempts != step.attempt:
            return None
        return next((result for result in job.results if result.index == step.index), None)

    async def _settle(self, step: StepInput, result: StepResult) -> bool:
        """Record the result; return False if the database is unavailable."""
        try:
            async with asyncio.timeout(RECORD_TIMEOUT.total_seconds()):
                if step.last:
                    is_written = await self.finish(await self._success(step, result))
                else:
                    record = StepRecord(job_id=step.job_id, attempt=step.attempt, result=result)
                    is_written = await self.record_step(record)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("job %s: the workflow has to record a step: %s", step.job_id, error)
            return False
        if not is_written:
            raise _superseded()
        return True

    async def _success(self, step: StepInput, result: StepResult) -> JobOutcome:
        """Return the outcome of a job whose last step has ``result``."""
        earlier: tuple[StepResult, ...] = ()
        if step.index:
            job = await self._jobs.find(step.job_id)
            earlier = tuple(before for before in job.results if before.index < step.index)
        return JobOutcome(
            job_id=step.job_id,
            owner=step.owner,
            attempt=step.attempt,
            status=JobStatus.SUCCEEDED,
            results=(*earlier, result),
        )


def _superseded() -> ApplicationError:
    return ApplicationError(
        "the attempt has ended, or a later one has begun", type=SUPERSEDED, non_retryable=True
    )


def _step_event(result: StepResult, attempt: int) -> tuple[EventType, dict[str, Any]]:
    artifacts = [artifact_body(a).model_dump(mode="json") for a in result.artifacts]
    return EventType.STEP, {"step": result.index, "artifacts": artifacts, "attempt": attempt}
