"""Runs work that can be done after the client has received its answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from moyin.text.routing.fair_sampling import FairSampler

_log = logging.getLogger(__name__)
# Tasks that run as a batch take a third of the time that they would take one by one.
_INTERVAL_SECONDS = 0.5
# Number of tasks, some milliseconds of work, after which the event loop runs other callbacks.
_TASKS_PER_SLICE = 16
_MAX_TASKS = 1_000
# Tasks keep whole requests and answers in memory until they have run.
_MAX_BYTES = 16 * 1024 * 1024


class BackgroundQueue:
    """Queue of the tasks that learn from requests; it belongs to one event loop.

    An exception of a task is logged and counted, and the next task runs.

    Attributes:
        sampler: chooses the requests to learn from, up to a number per second.
        failed: number of tasks that raised an exception.
        dropped: number of tasks that were rejected because the queue was full or closed.
    """

    def __init__(self, sampler: FairSampler | None = None) -> None:
        self.sampler = sampler or FairSampler()
        self.failed = self.dropped = 0
        self._tasks: deque[tuple[Callable[[], object], int]] = deque()
        self._bytes = 0
        self._scheduled_run: asyncio.Handle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Callable[..., object], *args: Any, size: int = 0) -> None:
        """Queue a task, which runs within about half a second.

        Args:
            size: the bytes that the task keeps in memory until it has run.
        """
        if self._closed or len(self._tasks) >= _MAX_TASKS:
            self.dropped += 1
            return
        if self._bytes + size > _MAX_BYTES:
            self.run_tasks()
        self._tasks.append((partial(task, *args), size))
        self._bytes += size
        if self._scheduled_run is None:
            self._scheduled_run = asyncio.get_running_loop().call_later(
                _INTERVAL_SECONDS, self._run_slice
            )

    def run_tasks(self, limit: int = _MAX_TASKS) -> None:
        """Run at most ``limit`` queued tasks now."""
        for _ in range(limit):
            if not self._tasks:
                break
            task, size = self._tasks.popleft()
            self._bytes -= size
            try:
                task()
            except Exception:
                self.failed += 1
                _log.exception(
                    "a task of the learning queue failed; its request is not learned from"
                )

    async def drain(self) -> None:
        """Run the tasks that are queued now, and let the event loop run other work in between."""
        remaining_count = len(self._tasks)
        while remaining_count > 0:
            self.run_tasks(min(remaining_count, _TASKS_PER_SLICE))
            remaining_count -= _TASKS_PER_SLICE
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Run the queued tasks; from now on, reject new tasks."""
        self._closed = True
        if self._scheduled_run is not None:
            self._scheduled_run.cancel()
            self._scheduled_run = None
        await self.drain()

    def _run_slice(self) -> None:
        self._scheduled_run = None
        self.run_tasks(_TASKS_PER_SLICE)
        if self._tasks:
            self._scheduled_run = asyncio.get_running_loop().call_soon(self._run_slice)
