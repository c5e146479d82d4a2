"""Measures how long to wait for servers to start: longer where the machine is busy or they progress."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

_POLL_SECONDS = 0.5
# The bound of all waits, in multiples of the seconds on a machine with nothing else to do.
_LONGEST = 10.0


class Patience:
    """Counts seconds of waiting, fewer where other programs need the processors.

    With three times as many runnable threads as processors, a server starts three times as slowly, so
    each second counts as a third of one. Progress starts the count anew.

    Args:
        seconds: the patience on a quiet machine; the wait ends after ten times as long at the latest.
        read_load: returns the number of runnable threads per processor.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        read_load: Callable[[], float] = lambda: os.getloadavg()[0] / (os.cpu_count() or 1),
    ) -> None:
        self._clock = clock
        self._read_load = read_load
        self._started = self._last = clock()
        self._seconds = seconds
        self._counted = 0.0
        self._progress: object = None

    def observe(self, progress: object = None) -> bool:
        """Count the time since the last call, and return True while waiting makes sense.

        Args:
            progress: what has been achieved so far; another value than before is progress.
        """
        now = self._clock()
        self._counted += (now - self._last) / max(1.0, self._read_load())
        self._last = now
        if progress != self._progress:
            self._progress, self._counted = progress, 0.0
        return self._counted < self._seconds and now - self._started < self._seconds * _LONGEST


async def wait_patiently(
    waited: Awaitable[None], seconds: float, measure: Callable[[], object] = lambda: None
) -> None:
    """Await ``waited`` for as long as `Patience` allows, then cancel it and raise `TimeoutError`.

    Args:
        measure: returns the progress for `Patience.observe`.
    """
    task = asyncio.ensure_future(waited)
    patience = Patience(seconds)
    try:
        while not task.done():
            if not patience.observe(measure()):
                raise TimeoutError
            await asyncio.wait({task}, timeout=min(_POLL_SECONDS, seconds))
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
