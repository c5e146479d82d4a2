"""Work that need not be done while a client waits."""

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
# Work of one kind, piece after piece, takes a third of the time that it takes between requests.
_EVERY_SECONDS = 0.5
# Pieces between two looks at what else there is to do: some milliseconds.
_SLICE = 16
_MAX_TASKS = 1_000
# Requests and answers are kept whole until they are looked at.
_MAX_BYTES = 16 * 1024 * 1024


class BackgroundQueue:
    """The one queue of what is to be learned: it belongs to one event loop, and takes so many requests
    a second as `FairSampler` lets it.

    A piece that fails is logged and counted, and costs no other.

    Attributes:
        share: says which requests are learned from.
        failed: pieces that raised.
        dropped: pieces that found no room.
    """

    def __init__(self, share: FairSampler | None = None) -> None:
        self.share = share or FairSampler()
        self.failed = self.dropped = 0
        self._waiting: deque[tuple[Callable[[], object], int]] = deque()
        self._bytes = 0
        self._handle: asyncio.Handle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task: Callable[..., object], *args: Any, size: int = 0) -> None:
        """Do ``task`` soon, after what waits.

        Args:
            size: bytes that it keeps in memory.
        """
        if self._closed or len(self._waiting) >= _MAX_TASKS:
            self.dropped += 1
            return
        if self._bytes + size > _MAX_BYTES:
            self.run()
        self._waiting.append((partial(task, *args), size))
        self._bytes += size
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(_EVERY_SECONDS, self._run_slice)

    def run(self, limit: int = _MAX_TASKS) -> None:
        """Do what waits, ``most`` pieces of it."""
        for _ in range(limit):
            if not self._waiting:
                break
            task, size = self._waiting.popleft()
            self._bytes -= size
            try:
                task()
            except Exception:
                self.failed += 1
                _log.exception("nothing is learned from a request that could not be read")

    async def drain(self) -> None:
        """Return when all is done that waits by now."""
        left = len(self._waiting)
        while left > 0:
            self.run(min(left, _SLICE))
            left -= _SLICE
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Do what waits, and take no more."""
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        await self.drain()

    def _run_slice(self) -> None:
        self._handle = None
        self.run(_SLICE)
        if self._waiting:
            self._handle = asyncio.get_running_loop().call_soon(self._run_slice)
