"""Contains `ClusterMonitor`, which shares one snapshot of the cluster among all viewers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from deployments.gateway.cluster.bodies import ClusterBody

_INTERVAL_SECONDS = 2.0
_HEARTBEAT_SECONDS = 15.0
ReadCluster = Callable[[], Awaitable[ClusterBody]]


class ClusterMonitor:
    """Reads the cluster's state on request, at most every two seconds for all viewers together.

    Viewers need no queue, because each one requests the newest snapshot when it is ready.

    Args:
        read: reads the cluster's state and returns a snapshot.
        interval: the minimum seconds between two readings.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        read: ReadCluster,
        *,
        interval: float = _INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._interval = interval
        self._clock = clock
        self._snapshot: ClusterBody | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[ClusterBody] | None = None

    async def get(self) -> ClusterBody:
        """Return a snapshot that is not older than ``interval``."""
        if self._snapshot is not None and self._clock() - self._read_at < self._interval:
            return self._snapshot
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        # Shielded, because a viewer that disconnects must not cancel the reading for others.
        return await asyncio.shield(self._reading)

    async def follow(self) -> AsyncGenerator[ClusterBody | None, None]:
        """Yield the current snapshot and each changed one; None after 15 seconds without change."""
        previous: ClusterBody | None = None
        sent_at = self._clock()
        while True:
            snapshot = await self.get()
            if snapshot is not previous:
                yield snapshot
                previous, sent_at = snapshot, self._clock()
            elif self._clock() - sent_at >= _HEARTBEAT_SECONDS:
                yield None
                sent_at = self._clock()
            await asyncio.sleep(self._interval)

    async def close(self) -> None:
        """Cancel the reading in progress."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _refresh(self) -> ClusterBody:
        try:
            snapshot = await self._read()
        finally:
            self._reading = None
        # The old snapshot is kept if the new one is equal, so that viewers can compare by identity.
        if snapshot != self._snapshot:
            self._snapshot = snapshot
        self._read_at = self._clock()
        assert self._snapshot is not None
        return self._snapshot
