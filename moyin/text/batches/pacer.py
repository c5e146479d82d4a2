"""Spreads the lines of batches over time, so that interactive requests run between them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Lines that start together also end together, and delay all other requests meanwhile.
_LINES = 2
_PAUSE_SECONDS = 0.008


class Pacer:
    """Lets a few lines start, then yields to the event loop, then lets the next few start.

    Without this pause, lines for a back end that answers immediately would occupy the event loop.
    The busier the loop, the longer a pause takes, and the fewer lines start.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._started_lines = 0

    async def wait(self) -> None:
        """Wait until another line of a batch may start."""
        self._started_lines += 1
        if self._started_lines > _LINES:
            self._started_lines = 1
            await self._sleep(_PAUSE_SECONDS)
