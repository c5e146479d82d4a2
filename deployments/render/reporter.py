"""`ProgressReporter`: publishes the progress of a render without delaying it."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.job import EventType, Progress
from moyin.domain.renderer import RenderProgress
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore

__all__ = ["ProgressReporter"]

_log = logging.getLogger(__name__)
_EVENT_SECONDS = 0.1
_ROW_SECONDS = 1.0
# An outage of either store must not delay the result for longer.
_CLOSE_SECONDS = 3.0


class ProgressReporter:
    """Publishes at most ten progress events and writes at most one job row per second.

    Args:
        batch: the step belongs to a batch; one event per second gives the progress of all of it.
        at_once: write the first progress to the job's row without delay.
    """

    def __init__(
        self,
        jobs: JobStore,
        events: EventStore,
        *,
        job_id: str,
        step: int,
        batch: bool = False,
        at_once: bool = False,
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._job_id = job_id
        self._step = step
        self._batch = batch
        self._first_row_seconds = 0.0 if at_once else _ROW_SECONDS
        self._newest: RenderProgress | None = None
        # Set when there is new progress, and at the end: a waiting render wakes no task.
        self._to_publish = asyncio.Event()
        self._to_record = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._record()),
            *([] if self._batch else [asyncio.create_task(self._publish())]),
        ]
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # The tasks end by events, not by cancellation: the Valkey client may lose a cancellation in
        # the middle of a command, and the database client would lose its connection.
        for event in (self._closing, self._to_publish, self._to_record):
            event.set()
        await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()

    def report(self, progress: RenderProgress) -> None:
        """Publish this progress soon; return at once."""
        if progress != self._newest:
            self._newest = progress
            self._to_publish.set()
            self._to_record.set()

    async def _publish(self) -> None:
        while await self._wait_for_progress(self._to_publish, _EVENT_SECONDS):
            progress = self._newest
            assert progress is not None
            data: dict[str, Any] = {
                "value": progress.value,
                "max": progress.max,
                "step": self._step,
            }
            if progress.node is not None:
                data["node"] = progress.node
            await self._events.publish(self._job_id, EventType.PROGRESS, data)

    async def _record(self) -> None:
        seconds = self._first_row_seconds
        while await self._wait_for_progress(self._to_record, seconds):
            seconds = _ROW_SECONDS
            progress = self._newest
            assert progress is not None
            row = Progress(value=progress.value, max=progress.max, step=self._step)
            try:
                overall = await self._jobs.record_progress(self._job_id, None, row)
            except (SQLAlchemyError, OSError) as error:
                # Only clients that poll read the row; the render goes on without it.
                _log.warning("progress of job %s was not written: %s", self._job_id, error)
                self._to_record.set()
                continue
            if self._batch and overall is not None:
                data = {"value": overall.value, "max": overall.max, "step": self._step}
                await self._events.publish(self._job_id, EventType.PROGRESS, data)

    async def _wait_for_progress(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for progress, then for ``seconds`` for more; return False if the end comes first."""
        await event.wait()
        if await self._closes_within(seconds):
            return False
        event.clear()
        return True

    async def _closes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True
