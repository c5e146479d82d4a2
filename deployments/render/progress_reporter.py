"""Contains `ProgressReporter`, which publishes a render's start and progress without delaying it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.job import Progress
from moyin.domain.renderer import RenderProgress
from moyin.jobs.protocol.response import build_progress_event
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore

_log = logging.getLogger(__name__)
_EVENT_INTERVAL_SECONDS = 0.1
_ROW_INTERVAL_SECONDS = 1.0
# Maximum seconds by which an outage of Valkey or the database delays the result.
_CLOSE_TIMEOUT_SECONDS = 3.0


class ProgressReporter:
    """Marks a job as running when its render starts, and then publishes the render's progress.

    Up to ten events are published and one database row is written per second. Progress before the
    call of `start` is published after it.

    Args:
        attempt: the number of the job's attempt, so that an abandoned attempt writes nothing.
        is_batch: True if the step belongs to a batch. The reporter then publishes the progress of
            the whole batch once per second instead.
        mark_started: marks the job as running, and publishes the corresponding event.
    """

    def __init__(
        self,
        jobs: JobStore,
        events: EventStore,
        *,
        job_id: str,
        attempt: int,
        step: int,
        mark_started: Callable[[], Awaitable[bool]],
        is_batch: bool = False,
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._job_id = job_id
        self._attempt = attempt
        self._step = step
        self._is_batch = is_batch
        self._mark_started = mark_started
        self._has_started = False
        self._latest: RenderProgress | None = None
        # Set when there is new progress and at the end, so that the tasks sleep while a render waits.
        self._started = asyncio.Event()
        self._marked = asyncio.Event()
        self._to_publish = asyncio.Event()
        self._to_record = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._mark_started_and_write_rows()),
            *([] if self._is_batch else [asyncio.create_task(self._publish_events())]),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        # The tasks are not cancelled at first, because the Valkey client may ignore a cancellation
        # during a command, and the database client would lose its connection.
        for event in (self._closing, self._started, self._to_publish, self._to_record):
            event.set()
        await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_SECONDS)
        for task in self._tasks:
            task.cancel()

    def start(self) -> None:
        """Begin to mark the job as running, without waiting for it. A second call does nothing."""
        self._has_started = True
        self._started.set()

    def report(self, progress: RenderProgress) -> None:
        """Queue the progress for publication and return at once."""
        if progress != self._latest:
            self._latest = progress
            self._to_publish.set()
            self._to_record.set()

    async def _mark_started_and_write_rows(self) -> None:
        await self._started.wait()
        try:
            if self._has_started:
                await self._retry_until_marked()
                await self._write_rows()
        finally:
            self._marked.set()

    async def _retry_until_marked(self) -> None:
        """Mark the job as running; while the database is unavailable, try again.

        Progress is published after the first try, even if it has failed.
        """
        while True:
            try:
                await self._mark_started()
                break
            except (SQLAlchemyError, OSError) as error:
                _log.warning(
                    "the start of job %s was not written to the database; trying again: %s",
                    self._job_id,
                    error,
                )
            self._marked.set()
            if await self._closes_within(_ROW_INTERVAL_SECONDS):
                return
        self._marked.set()

    async def _publish_events(self) -> None:
        # The event of the job's start must precede its progress.
        await self._marked.wait()
        if not self._has_started:
            return
        while await self._wait_for_progress(self._to_publish, _EVENT_INTERVAL_SECONDS):
            progress = self._latest
            assert progress is not None
            row = Progress(value=progress.value, max=progress.max, step=self._step)
            event = build_progress_event(row, progress.node)
            await self._events.publish(self._job_id, *event)

    async def _write_rows(self) -> None:
        while await self._wait_for_progress(self._to_record, _ROW_INTERVAL_SECONDS):
            progress = self._latest
            assert progress is not None
            row = Progress(value=progress.value, max=progress.max, step=self._step)
            try:
                batch_progress = await self._jobs.record_progress(self._job_id, self._attempt, row)
            except (SQLAlchemyError, OSError) as error:
                # The render continues, because only clients that poll need the row.
                _log.warning(
                    "the progress of job %s was not written to the database; trying again: %s",
                    self._job_id,
                    error,
                )
                self._to_record.set()
                continue
            if self._is_batch and batch_progress is not None:
                await self._events.publish(self._job_id, *build_progress_event(batch_progress))

    async def _wait_for_progress(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for ``event``, which announces progress, and then for ``seconds``.

        Return False if the render ends during these seconds.
        """
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
