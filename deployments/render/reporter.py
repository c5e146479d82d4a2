"""Tells watchers how far a render is, without ever holding it up."""

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
# An outage of either store must not hold up the result.
_PATIENCE_SECONDS = 3.0


class ProgressReporter:
    """Publishes the newest progress: ten events and one write of the job's row a second at most.

    Args:
        batch: the step is a child of one: an event a second tells how far all of them are.
        at_once: the row shall say without delay that the render no longer waits.
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
        # Set when there is something to tell, or at the end: a render that waits wakes nobody.
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
        # Asked to end, not cancelled: a cancellation in the middle of a command may get lost in the
        # Valkey client, and costs the database client its connection.
        for event in (self._closing, self._to_publish, self._to_record):
            event.set()
        await asyncio.wait(self._tasks, timeout=_PATIENCE_SECONDS)
        for task in self._tasks:
            task.cancel()

    def report(self, progress: RenderProgress) -> None:
        if progress != self._newest:
            self._newest = progress
            self._to_publish.set()
            self._to_record.set()

    async def _publish(self) -> None:
        while await self._news(self._to_publish, _EVENT_SECONDS):
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
        while await self._news(self._to_record, seconds):
            seconds = _ROW_SECONDS
            progress = self._newest
            assert progress is not None
            row = Progress(value=progress.value, max=progress.max, step=self._step)
            try:
                overall = await self._jobs.progress(self._job_id, None, row)
            except (SQLAlchemyError, OSError) as error:
                # The row is for people who poll; the render goes on without them.
                _log.warning("progress of job %s not written: %s", self._job_id, error)
                self._to_record.set()
                continue
            if self._batch and overall is not None:
                data = {"value": overall.value, "max": overall.max, "step": self._step}
                await self._events.publish(self._job_id, EventType.PROGRESS, data)

    async def _news(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for news and then, for more of them, ``seconds``; False when the end comes first."""
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
