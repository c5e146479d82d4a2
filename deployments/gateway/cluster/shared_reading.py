"""Contains `SharedReading`, which shares the newest value of a source among all clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

# The longest time until a source that did not respond is read again.
_RETRY_SECONDS = 5.0
# The longest pause, because a reading may have waited for others for most of its time.
_MAX_PAUSE_SECONDS = 600.0
ValueT = TypeVar("ValueT")


class SharedReading(Generic[ValueT]):
    """Reads a source while clients need its value, at most once per interval for all of them.

    Values are not queued: a slow client skips older values and gets the newest one.

    Args:
        read: returns the present value; None stands for a source that does not respond.
        interval_seconds: the seconds between two readings.
        pause_factor: minimum pause between two readings, as a multiple of the duration of a
            reading.
        shows_old_value: True to send a new client the last value at once, even if it is older than
            the interval.
        clock: returns the present monotonic time in seconds.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[ValueT]],
        *,
        interval_seconds: float,
        pause_factor: float = 0.0,
        shows_old_value: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._interval_seconds = interval_seconds
        self._pause_factor = pause_factor
        self._shows_old_value = shows_old_value
        self._clock = clock
        self._value: ValueT
        self._version = 0
        self._fresh_until = float("-inf")
        self._reading: asyncio.Task[ValueT] | None = None

    async def get(self) -> ValueT:
        """Return a value at most as old as the interval; read the source if necessary."""
        if self._clock() < self._fresh_until:
            return self._value
        if self._reading is None:
            # Not in the context of the viewer's request, with which Serve would cancel the reading's calls.
            self._reading = asyncio.create_task(self._refresh(), context=Context())
        # Shielded, because a viewer that disconnects must not end the reading of the others.
        return await asyncio.shield(self._reading)

    async def follow(self) -> AsyncGenerator[ValueT, None]:
        """Yield the current value, and then each new value that differs from the last one."""
        version = -1
        if self._shows_old_value and self._version and self._value is not None:
            version = self._version
            yield self._value
        while True:
            value = await self.get()
            if self._version != version:
                version = self._version
                yield value
            min_pause_seconds = min(self._interval_seconds, _RETRY_SECONDS)
            await asyncio.sleep(max(min_pause_seconds, self._fresh_until - self._clock()))

    async def close(self) -> None:
        """Cancel the reading in progress."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _refresh(self) -> ValueT:
        started_at = self._clock()
        try:
            value = await self._read()
        finally:
            self._reading = None
        # An equal value is dropped, so that clients get changes only.
        if not self._version or value != self._value:
            self._value = value
            self._version += 1
        now = self._clock()
        pause_seconds = max(
            self._interval_seconds, min(self._pause_factor * (now - started_at), _MAX_PAUSE_SECONDS)
        )
        self._fresh_until = now + (
            min(pause_seconds, _RETRY_SECONDS) if value is None else pause_seconds
        )
        return self._value
