"""How many calls a back end gets at a time; who comes later waits, but not for ever."""

from __future__ import annotations

import asyncio
from collections import deque

from moyin.errors import Overloaded

__all__ = ["Slots"]


class Slots:
    """First come, first served. Used from one event loop.

    Args:
        limit: calls at a time; None: as many as come.
        queue: calls that may wait.
        patience: seconds that a call waits at most.
    """

    def __init__(self, limit: int | None = None, *, queue: int = 0, patience: float = 0.0) -> None:
        self.limit = limit
        self.taken = 0
        self._queue = queue
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.limit is not None and self.taken >= self.limit

    def take(self) -> bool:
        """Take a slot if one is free; each that is taken must be given back by `free`."""
        if self.limit is not None and (self._waiting or self.taken >= self.limit):
            return False
        self.taken += 1
        return True

    async def wait(self, seconds: float, service: float) -> None:
        """Take a slot as soon as it is this call's turn.

        Args:
            seconds: left to the call.
            service: seconds that a call usually takes; what a refused client is told to wait is
                made of it.

        Raises:
            Overloaded: too many wait already, or it took too long.
        """
        if len(self._waiting) >= self._queue:
            raise self._overloaded(service)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(min(self._patience, seconds)):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The slot came in the same moment; somebody else shall have it.
                self.free()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._overloaded(service) from None
            raise

    def free(self) -> None:
        """Give a slot back: to who waits longest, if anybody does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.taken -= 1

    def expected_wait(self, service: float) -> float:
        """Seconds until a new call would begin, when each takes ``service`` seconds."""
        if self.limit is None or self.taken < self.limit:
            return 0.0
        return (len(self._waiting) + 1) * service / self.limit

    def _overloaded(self, service: float) -> Overloaded:
        return Overloaded(
            "all that could answer are busy", retry_after=max(1.0, self.expected_wait(service))
        )
