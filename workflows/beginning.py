"""The beginning of a job: its first step says that it runs, and learns whether it still may."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError
from temporalio.exceptions import ApplicationError

from moyin.protocols.jobs.translate import event_of
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore
from workflows.failures import SUPERSEDED
from workflows.types import StepInput

__all__ = ["begin", "mark_running"]

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 2.0


async def begin(jobs: JobStore, events: EventStore, step: StepInput) -> None:
    """Mark the job running if this is the step with which its attempt begins.

    In the step's own activity, because one of its own would cost as much as a small picture.

    Raises:
        ApplicationError: the attempt is over (`workflows.failures.is_superseded`).
    """
    if step.begins is None:
        return
    while True:
        try:
            runs = await mark_running(jobs, events, step.job_id, step.begins)
            break
        except (SQLAlchemyError, OSError) as error:
            # The database may be away for as long as it likes; nothing has been done yet.
            _log.warning("job %s waits for the database: %s", step.job_id, error)
            await asyncio.sleep(_PAUSE_SECONDS)
    if not runs:
        raise ApplicationError(
            "the attempt is over or has a successor", type=SUPERSEDED, non_retryable=True
        )


async def mark_running(jobs: JobStore, events: EventStore, job_id: str, attempt: int) -> bool:
    """False when the attempt is over; watchers are told once."""
    job = await jobs.start(job_id, attempt)
    if job is None:
        return await jobs.is_open(job_id, attempt)
    await events.publish(job_id, *event_of(job))
    return True
