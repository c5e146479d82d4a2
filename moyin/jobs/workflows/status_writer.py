"""Defines `JobStatusWriter`, which writes and publishes the status of running jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity
from temporalio.exceptions import ApplicationError

from moyin.domain.job import Job, JobStatus, StepResult
from moyin.errors import JobNotFound
from moyin.jobs.protocol.response import build_status_event, build_step_event
from moyin.jobs.workflows.failures import SUPERSEDED
from moyin.jobs.workflows.policies import RECORD_TIMEOUT, run_to_completion
from moyin.jobs.workflows.types import JobOutcome, StepInput, StepOutcome, StepRecord
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 2.0


class JobStatusWriter:
    """Writes the status of running jobs to their rows in SQL, and publishes it as events.

    Args:
        on_end: called once with each job whose end was written.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        events: EventStore,
        frames: FrameStore,
        on_end: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._frames = frames
        self._on_end = on_end

    async def run_step(
        self,
        step: StepInput,
        work: Callable[[], Awaitable[StepResult]],
        *,
        starts_at_once: bool = True,
    ) -> StepOutcome:
        """Run a step within its activity, record its start and its result, and return its outcome.

        The job is marked as running before ``work`` is called. If ``starts_at_once`` is False,
        ``work`` must call `mark_started` as soon as the step no longer waits.

        No separate activity records the result, because it would take as long as rendering a small
        picture. If the database is unavailable when the step is done, the workflow records the
        result later.

        If an earlier try of the activity recorded a result before its worker was lost, the step
        does not run again. The events of that result are published again, because the worker may
        have been lost before it published them.

        Raises:
            ApplicationError: the attempt has ended, or a later one has begun
                (`moyin.jobs.workflows.failures.is_superseded`).
        """
        result = await self._begin_step(step, starts_at_once) or await work()
        return StepOutcome(
            result=result, recorded=await run_to_completion(self._record_result(step, result))
        )

    async def mark_started(self, step: StepInput) -> bool:
        """Mark a queued job as running and publish the event, if the attempt begins with the step.

        Return False if the job was not marked.
        """
        job = None if step.begins is None else await self._jobs.start(step.job_id, step.begins)
        if job is None:
            return False
        await self._events.publish(job.id, *build_status_event(job))
        return True

    async def record_step(self, record: StepRecord) -> bool:
        """Write the checkpoint of a step; return False if the attempt is over."""
        progress = await self._jobs.record_step(record.job_id, record.attempt, record.result)
        if progress is not None:
            event = build_step_event(record.result, record.attempt, progress)
            await self._events.publish(record.job_id, *event)
        return progress is not None

    async def finish(self, outcome: JobOutcome) -> bool:
        """Write an attempt's end to the job's row, unless the row has it, and publish the event.

        Return False if a later attempt has begun, or the owner has deleted the ended job.
        """
        try:
            ended_job = await self._jobs.finish(
                outcome.job_id,
                outcome.attempt,
                outcome.status,
                outcome.error,
                results=outcome.results,
            )
            if ended_job is not None:
                self._on_end(ended_job)
            job = ended_job or await self._jobs.find(outcome.job_id)
        except JobNotFound:
            return False
        if job.attempts != outcome.attempt or not job.status.is_final:
            return False
        # If the job was cancelled meanwhile, its row has neither the result nor the artifacts.
        last_result = outcome.results[-1:] if job.status is outcome.status else ()
        step_events = [build_step_event(result, outcome.attempt) for result in last_result]
        await self._events.publish_all(job.id, [*step_events, build_status_event(job)])
        await self._frames.publish_end(job)
        return True

    async def _begin_step(self, step: StepInput, starts_at_once: bool) -> StepResult | None:
        """Mark the job as running, and return the result that an earlier try recorded, if any.

        Raises:
            ApplicationError: the attempt has ended, or a later one has begun.
        """
        while True:
            try:
                is_open = (
                    step.begins is None
                    or (starts_at_once and await self.mark_started(step))
                    or await self._jobs.is_open(step.job_id, step.begins)
                )
                # Read last, because the earlier try may still be running and may record its result
                # meanwhile.
                recorded_result = await self._find_recorded_result(step)
                break
            except (SQLAlchemyError, OSError) as error:
                # Wait for the database here: no work has been done yet, so waiting costs nothing.
                _log.warning("job %s waits for the SQL database: %s", step.job_id, error)
                await asyncio.sleep(_PAUSE_SECONDS)
        if recorded_result is None and not is_open:
            raise _new_superseded_error()
        return recorded_result

    async def _find_recorded_result(self, step: StepInput) -> StepResult | None:
        if activity.info().attempt == 1:
            return None
        job = await self._jobs.find(step.job_id)
        if job.attempts != step.attempt:
            return None
        return next((result for result in job.results if result.index == step.index), None)

    async def _record_result(self, step: StepInput, result: StepResult) -> bool:
        """Record the result of a step; return False if the database is unavailable."""
        try:
            async with asyncio.timeout(RECORD_TIMEOUT.total_seconds()):
                if step.last:
                    is_written = await self.finish(await self._build_success_outcome(step, result))
                else:
                    record = StepRecord(job_id=step.job_id, attempt=step.attempt, result=result)
                    is_written = await self.record_step(record)
        except (SQLAlchemyError, OSError) as error:
            _log.warning(
                "the workflow of job %s will record step %d: %s", step.job_id, step.index, error
            )
            return False
        if not is_written:
            raise _new_superseded_error()
        return True

    async def _build_success_outcome(self, step: StepInput, result: StepResult) -> JobOutcome:
        """Return the outcome of a job whose last step has the result."""
        earlier_results: tuple[StepResult, ...] = ()
        if step.index:
            job = await self._jobs.find(step.job_id)
            earlier_results = tuple(
                earlier_result
                for earlier_result in job.results
                if earlier_result.index < step.index
            )
        return JobOutcome(
            job_id=step.job_id,
            owner=step.owner,
            attempt=step.attempt,
            status=JobStatus.SUCCEEDED,
            results=(*earlier_results, result),
        )


def _new_superseded_error() -> ApplicationError:
    return ApplicationError(
        "the attempt of the job has ended, or a later attempt has begun",
        type=SUPERSEDED,
        non_retryable=True,
    )
