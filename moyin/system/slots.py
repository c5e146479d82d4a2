"""Places for calls that run at a time, shared fairly between tenants; later calls wait, bounded."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from moyin.errors import Overloaded

__all__ = ["Slots"]

_KEPT_SECONDS = 60.0

_Turn = asyncio.Future[None]


class Slots:
    """First come, first served for one tenant; fair shares between several.

    A freed place goes to the waiting tenant with the fewest running calls, and of equals to the one
    that waits longest. While other tenants are about, which they are for a minute after their last
    call, the last free place is given only to a tenant that has none: so nobody holds all of them.
    When the queue is full, a tenant with fewer waiting calls takes the place of the newest call of
    the tenant with the most. Used from one event loop.

    Args:
        limit: calls at a time; None: as many as come.
        queue: calls that may wait.
        patience: seconds that a call waits at most.
        kept: seconds for which the last place is kept after another tenant's call; infinite:
            always.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        queue: int = 0,
        patience: float = 0.0,
        kept: float = _KEPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.taken = 0
        self.waiting = 0
        self._queue = queue
        self._patience = patience
        self._kept = kept
        self._clock = clock
        self._running: dict[str, int] = {}
        self._turns: dict[str, deque[_Turn]] = {}
        self._latest: str | None = None
        self._kept_until = math.inf if kept == math.inf else 0.0

    @property
    def full(self) -> bool:
        return self.limit is not None and self.taken >= self.limit

    def take(self, tenant: str) -> bool:
        """Take a place if one is free for this tenant; each that is taken must be given back by
        `free`."""
        limit = self.limit
        if limit is None:
            self.taken += 1
            return True
        if tenant != self._latest:
            if self._latest is not None:
                self._kept_until = self._clock() + self._kept
            self._latest = tenant
        # Calls that wait although a place is free may not have it; others may overtake them.
        if self.taken >= limit or tenant in self._turns or not self._may_have(tenant, limit):
            return False
        self._begin(tenant)
        return True

    async def wait(self, tenant: str, seconds: float, service: float) -> None:
        """Take a place as soon as it is this call's turn.

        Args:
            seconds: left to the call.
            service: seconds that a call usually takes; what a refused client is told to wait is
                made of it.

        Raises:
            Overloaded: too many wait already, or it took too long.
        """
        if self.waiting >= self._queue and not self._displace(tenant, service):
            raise self._overloaded(service)
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._turns.setdefault(tenant, deque()).append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(min(self._patience, seconds)):
                await turn
        except BaseException as error:
            if not turn.done() or turn.cancelled():
                self._forget(tenant, turn)
            elif turn.exception() is None:
                # The place came in the same moment; another call shall have it.
                self.free(tenant)
            if isinstance(error, TimeoutError):
                raise self._overloaded(service) from None
            raise

    def free(self, tenant: str) -> None:
        """Give a place back: to the waiting tenant with the fewest, if any may have it."""
        self.taken -= 1
        if self.limit is None:
            return
        left = self._running[tenant] - 1
        if left:
            self._running[tenant] = left
        else:
            del self._running[tenant]
        while self._turns and self.taken < self.limit:
            # Tenants stand in the order in which they began to wait.
            following = min(self._turns, key=lambda one: self._running.get(one, 0))
            if not self._may_have(following, self.limit):
                return
            turns = self._turns.pop(following)
            turn = turns.popleft()
            self.waiting -= 1
            if turns:
                self._turns[following] = turns
            if not turn.done():
                self._begin(following)
                turn.set_result(None)

    def expected_wait(self, service: float) -> float:
        """Seconds until a new call would begin, when each takes ``service`` seconds."""
        if self.limit is None or self.taken < self.limit:
            return 0.0
        return (self.waiting + 1) * service / self.limit

    def _may_have(self, tenant: str, limit: int) -> bool:
        """Whether the tenant may have one more of the free places."""
        if self.taken + 1 < limit or limit == 1 or tenant not in self._running:
            return True
        return len(self._turns) < 2 and self._clock() >= self._kept_until

    def _begin(self, tenant: str) -> None:
        self.taken += 1
        self._running[tenant] = self._running.get(tenant, 0) + 1

    def _displace(self, tenant: str, service: float) -> bool:
        """Refuse the newest waiting call of the tenant with the most, if that is fairer."""
        if not self._turns:
            return False
        longest = max(self._turns, key=lambda one: len(self._turns[one]))
        if len(self._turns[longest]) <= len(self._turns.get(tenant, ())) + 1:
            return False
        turn = self._turns[longest][-1]
        self._forget(longest, turn)
        if not turn.done():
            turn.set_exception(self._overloaded(service))
        return True

    def _forget(self, tenant: str, turn: _Turn) -> None:
        turns = self._turns.get(tenant)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        self.waiting -= 1
        if not turns:
            del self._turns[tenant]

    def _overloaded(self, service: float) -> Overloaded:
        return Overloaded(
            "all that could answer are busy", retry_after=max(1.0, self.expected_wait(service))
        )
