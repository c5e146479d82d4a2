"""Spreads lines of batches over time, so that interactive requests find time between them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Lines that begin at once also end at once, and delay all other requests meanwhile.
_LINES = 2
_PAUSE_SECONDS = 0.008


class Pacer:
    """Lets a few lines begin, then the event loop do other things, then the next few.

    Without it, lines for a back end that answers at once would take all of the event loop's time.
    The busier the loop, the later it returns from a pause, so the fewer lines begin.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._begun = 0

    async def wait(self) -> None:
        """Return when another line may begin."""
        self._begun += 1
        if self._begun > _LINES:
            self._begun = 1
            await self._sleep(_PAUSE_SECONDS)
