"""Defines `QueuePlaceCache`, which reads the places of queued and running jobs from the render pools."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from moyin.domain.queue_place import QueuePlace
from moyin.errors import ServiceUnavailable

# Minimum seconds between calls of a pool. A pool is called only while clients read open renders.
_INTERVAL_SECONDS = 1.0
# Places that are older than this many seconds are not shown.
_MAX_AGE_SECONDS = 3.0
# Seconds that a client waits for the pools at most. The calls continue for later clients.
_WAIT_SECONDS = 0.5
# A function that returns the places of a pool's jobs, or raises ServiceUnavailable.
ListPlaces = Callable[[str], Awaitable[Mapping[str, QueuePlace]]]


@dataclass(slots=True)
class _PoolQueue:
    """The latest queue places that a pool returned, and when it was last called and last responded.

    Attributes:
        is_slow: True if a reader has waited for the current call without getting a response.
    """

    places: Mapping[str, QueuePlace] = field(default_factory=dict)
    called_at: float = float("-inf")
    received_at: float = float("-inf")
    call: asyncio.Task[None] | None = None
    is_slow: bool = False


class QueuePlaceCache:
    """Caches the places of jobs in the queues of all render pools.

    Args:
        list_places: calls one pool, and returns the places of its jobs.
        pools: the names of the pools.
        clock: returns the present time in seconds.
    """

    def __init__(
        self,
        list_places: ListPlaces,
        pools: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._list_places = list_places
        self._queues = {pool: _PoolQueue() for pool in pools}
        self._clock = clock
        self._wait = wait_seconds

    async def read(self) -> Mapping[str, QueuePlace]:
        """Return the places by job id, without the jobs of pools that do not respond."""
        now = self._clock()
        for pool, queue in self._queues.items():
            if queue.call is None and now - queue.called_at >= _INTERVAL_SECONDS:
                queue.called_at = now
                queue.call = asyncio.create_task(self._refresh_queue(pool, queue))
        # Do not wait for a pool that has responded recently, or whose present call is slow.
        awaited_queues = [
            queue
            for queue in self._queues.values()
            if queue.call is not None
            and not queue.is_slow
            and now - queue.received_at >= _INTERVAL_SECONDS
        ]
        if awaited_queues:
            calls = [queue.call for queue in awaited_queues if queue.call is not None]
            await asyncio.wait(calls, timeout=self._wait)
            for queue in awaited_queues:
                queue.is_slow = queue.call is not None
        oldest_time = self._clock() - _MAX_AGE_SECONDS
        places: dict[str, QueuePlace] = {}
        for queue in self._queues.values():
            if queue.received_at >= oldest_time:
                places.update(queue.places)
        return places

    async def close(self) -> None:
        """Cancel the calls to pools that are in progress."""
        calls = [queue.call for queue in self._queues.values() if queue.call is not None]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _refresh_queue(self, pool: str, queue: _PoolQueue) -> None:
        try:
            queue.places = await self._list_places(pool)
            queue.received_at = self._clock()
        except ServiceUnavailable:
            # Places from before an outage are no longer valid after it.
            queue.received_at = float("-inf")
        finally:
            queue.call, queue.is_slow = None, False
