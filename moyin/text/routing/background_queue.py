"""Runs work that need not be done while a client waits."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from moyin.text.routing.fair_sampling import FairSampler

__all__ = ["BackgroundQueue"]

_log = logging.getLogger(__name__)
# Tasks run in a batch take a third of the time that they take between requests.
_INTERVAL_SECONDS = 0.5
# Tasks between two turns of the event loop: some milliseconds.
_TASKS_PER_SLICE = 16
_MAX_TASKS = 1_000
# Requests and answers are kept whole until their task has run.
_MAX_BYTES = 16 * 1024 * 1024


class BackgroundQueue:
    """Queues the tasks that learn from requests, on one event loop.

    Its `FairSampler` limits how many requests a second are learned from. A task that fails is
    logged and counted, and affects no other.

    Attributes:
        share: chooses the requests to learn from.
        failed: tasks that raised an exception.
        dropped: tasks for which the queue had no room.
    """

    def __init__(self, share: FairSampler | None = None) -> None:
        self.share = share or FairSampler()
        self.failed = self.dropped = 0
        self._tasks: deque[tuple[Callable[[], object], int]] = deque()
        self._bytes = 0
        self._scheduled: asyncio.Handle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Callable[..., object], *args: Any, size: int = 0) -> None:
        """Run ``task`` soon, after the tasks that wait.

        Args:
            size: bytes that it keeps in memory.
        """
        if self._closed or len(self._tasks) >= _MAX_TASKS:
            self.dropped += 1
            return
        if self._bytes + size > _MAX_BYTES:
            self.run_tasks()
        self._tasks.append((partial(task, *args), size))
        self._bytes += size
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_later(
                _INTERVAL_SECONDS, self._run_slice
            )

    def run_tasks(self, limit: int = _MAX_TASKS) -> None:
        """Run waiting tasks now, at most ``limit``."""
        for _ in range(limit):
            if not self._tasks:
                break
            task, size = self._tasks.popleft()
            self._bytes -= size
            try:
                task()
            except Exception:
                self.failed += 1
                _log.exception("a background task failed; nothing is learned from its request")

    async def drain(self) -> None:
        """Run all tasks that wait by now; yield to the event loop in between."""
        remaining = len(self._tasks)
        while remaining > 0:
            self.run_tasks(min(remaining, _TASKS_PER_SLICE))
            remaining -= _TASKS_PER_SLICE
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Run the waiting tasks and accept no more."""
        self._closed = True
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        await self.drain()

    def _run_slice(self) -> None:
        self._scheduled = None
        self.run_tasks(_TASKS_PER_SLICE)
        if self._tasks:
            self._scheduled = asyncio.get_running_loop().call_soon(self._run_slice)
