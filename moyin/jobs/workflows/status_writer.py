"""`JobStatusWriter`: how a job stands, in its row and for those who watch it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity
from temporalio.exceptions import ApplicationError

from moyin.domain.job import EventType, JobStatus, StepResult
from moyin.jobs.protocol.translate import artifact_body, event_of
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
    """Written by the activities of a job, in every worker that has some."""

    def __init__(self, *, jobs: JobStore, events: EventStore, frames: FrameStore) -> None:
        self._jobs = jobs
        self._events = events
        self._frames = frames

    async def around(
        self, step: StepInput, work: Callable[[], Awaitable[StepResult]]
    ) -> StepDone | StepResult:
        """Do a step inside its activity, and write down that it begins and that it is done.

        Here, because an activity of its own for each would cost as much as a small picture. If the
        database is away when the step is done, the workflow writes that down, later. What was
        written before the worker was lost is found again, and not done twice; but watchers are told
        again, since the worker may have been lost before they were.

        Returns:
            A mere result for workflows before version 3, which write all steps down.

        Raises:
            ApplicationError: the job's attempt is over (`moyin.jobs.workflows.failures.is_superseded`).
        """
        result = await self._begin(step) or await work()
        if step.attempt is None:
            return result
        return StepDone(result=result, recorded=await run_to_completion(self._settle(step, result)))

    async def start(self, job_id: str, attempt: int) -> bool:
        """The job runs; False when the attempt is over. Watchers are told once."""
        job = await self._jobs.start(job_id, attempt)
        if job is None:
            return await self._jobs.is_open(job_id, attempt)
        await self._events.publish(job_id, *event_of(job))
        return True

    async def step(self, record: StepRecord) -> bool:
        """Write a checkpoint; False when the attempt is over."""
        progress = await self._jobs.record_step(record.job_id, record.attempt, record.result)
        if progress is not None:
            kind, data = _step_event(record.result, record.attempt)
            far = {"value": progress.value, "max": progress.max}
            await self._events.publish(record.job_id, kind, {**data, **far})
        return progress is not None

    async def finish(self, outcome: JobOutcome) -> bool:
        """Write the one result; True when this attempt has its end, however often asked.

        The first end that was written stands: a cancellation may come while one is being written.
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
        # Of a job that was cancelled meanwhile the row has neither the result nor its artifacts.
        made = outcome.results[-1:] if job.status is outcome.status else ()
        steps = [_step_event(result, outcome.attempt) for result in made]
        await self._events.publish_all(job.id, [*steps, event_of(job)])
        await self._frames.end(job)
        return True

    async def _begin(self, step: StepInput) -> StepResult | None:
        """What a lost try of the same step has written down; None: the step is still to be done."""
        while True:
            try:
                runs = step.begins is None or await self.start(step.job_id, step.begins)
                # Only now: the lost try may be alive, and write down what ends the attempt.
                found = await self._found(step)
                break
            except (SQLAlchemyError, OSError) as error:
                # The database may be away for as long as it likes; nothing has been done yet.
                _log.warning("job %s waits for the database: %s", step.job_id, error)
                await asyncio.sleep(_PAUSE_SECONDS)
        if found is None and not runs:
            raise _superseded()
        return found

    async def _found(self, step: StepInput) -> StepResult | None:
        if step.attempt is None or activity.info().attempt == 1:
            return None
        job = await self._jobs.find(step.job_id)
        if job.attempts != step.attempt:
            return None
        return next((result for result in job.results if result.index == step.index), None)

    async def _settle(self, step: StepInput, result: StepResult) -> bool:
        """Whether the result is written down."""
        assert step.attempt is not None
        try:
            async with asyncio.timeout(RECORD_TIMEOUT.total_seconds()):
                if step.last:
                    written = await self.finish(await self._success(step, step.attempt, result))
                else:
                    record = StepRecord(job_id=step.job_id, attempt=step.attempt, result=result)
                    written = await self.step(record)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("job %s: the workflow has to write a step down: %s", step.job_id, error)
            return False
        if not written:
            raise _superseded()
        return True

    async def _success(self, step: StepInput, attempt: int, result: StepResult) -> JobOutcome:
        earlier: tuple[StepResult, ...] = ()
        if step.index:
            job = await self._jobs.find(step.job_id)
            earlier = tuple(before for before in job.results if before.index < step.index)
        return JobOutcome(
            job_id=step.job_id,
            owner=step.owner,
            attempt=attempt,
            status=JobStatus.SUCCEEDED,
            results=(*earlier, result),
        )


def _superseded() -> ApplicationError:
    return ApplicationError(
        "the attempt is over or has a successor", type=SUPERSEDED, non_retryable=True
    )


def _step_event(result: StepResult, attempt: int) -> tuple[EventType, dict[str, Any]]:
    artifacts = [artifact_body(a).model_dump(mode="json") for a in result.artifacts]
    return EventType.STEP, {"step": result.index, "artifacts": artifacts, "attempt": attempt}
