"""Contains `ProgressReporter`, which publishes a render's progress without delaying the render."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.job import EventType, Progress
from moyin.domain.renderer import RenderProgress
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore

_log = logging.getLogger(__name__)
_EVENT_INTERVAL_SECONDS = 0.1
_ROW_INTERVAL_SECONDS = 1.0
# An outage of Valkey or the database delays the result by this time at most.
_CLOSE_TIMEOUT_SECONDS = 3.0


class ProgressReporter:
    """Publishes up to ten progress events and updates the job's row up to once per second.

    Args:
        is_batch: whether the step belongs to a batch. The reporter then publishes the progress of
            the whole batch once per second instead.
        writes_at_once: whether to write the first progress to the job's row without delay.
    """

    def __init__(
        self,
        jobs: JobStore,
        events: EventStore,
        *,
        job_id: str,
        step: int,
        is_batch: bool = False,
        writes_at_once: bool = False,
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._job_id = job_id
        self._step = step
        self._is_batch = is_batch
        self._first_row_seconds = 0.0 if writes_at_once else _ROW_INTERVAL_SECONDS
        self._latest: RenderProgress | None = None
        # Set when there is new progress and at the end, so that the tasks sleep while a render waits.
        self._to_publish = asyncio.Event()
        self._to_record = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._write_rows()),
            *([] if self._is_batch else [asyncio.create_task(self._publish_events())]),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        # The tasks are not cancelled at first, because the Valkey client may ignore a cancellation
        # during a command, and the database client would lose its connection.
        for event in (self._closing, self._to_publish, self._to_record):
            event.set()
        await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_SECONDS)
        for task in self._tasks:
            task.cancel()

    def report(self, progress: RenderProgress) -> None:
        """Queue the progress for publication and return at once."""
        if progress != self._latest:
            self._latest = progress
            self._to_publish.set()
            self._to_record.set()

    async def _publish_events(self) -> None:
        while await self._wait_for_progress(self._to_publish, _EVENT_INTERVAL_SECONDS):
            progress = self._latest
            assert progress is not None
            data: dict[str, Any]
            data = {"value": progress.value, "max": progress.max, "step": self._step}
            if progress.node is not None:
                data["node"] = progress.node
            await self._events.publish(self._job_id, EventType.PROGRESS, data)

    async def _write_rows(self) -> None:
        seconds = self._first_row_seconds
        while await self._wait_for_progress(self._to_record, seconds):
            seconds = _ROW_INTERVAL_SECONDS
            progress = self._latest
            assert progress is not None
            row = Progress(value=progress.value, max=progress.max, step=self._step)
            try:
                overall = await self._jobs.record_progress(self._job_id, None, row)
            except (SQLAlchemyError, OSError) as error:
                # The render continues, because only clients that poll need the row.
                _log.warning(
                    "the progress of job %s was not written to the database; trying again: %s",
                    self._job_id,
                    error,
                )
                self._to_record.set()
                continue
            if self._is_batch and overall is not None:
                data = {"value": overall.value, "max": overall.max, "step": self._step}
                await self._events.publish(self._job_id, EventType.PROGRESS, data)

    async def _wait_for_progress(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for progress and then for ``seconds``; return False if the render ends meanwhile."""
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
