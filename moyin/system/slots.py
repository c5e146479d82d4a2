"""Limits concurrent calls fairly between tenants, with a bounded queue of waiting calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from moyin.errors import Overloaded

_RESERVE_SECONDS = 60.0

_Waiter = asyncio.Future[None]


class Slots:
    """A limit of concurrent calls in one event loop, shared fairly between tenants.

    A free slot goes to the waiting tenant with the fewest running calls; if there are several, to
    the one that has waited longest. The calls of one tenant begin in the order of arrival. For a
    minute after another tenant's call, the last free slot stays reserved for tenants without a
    running call, so that no tenant uses all slots. When the queue is full, a new call of a tenant
    with few waiting calls replaces the newest waiting call of the tenant with the most.

    Calls in the background, such as lines of batches, use at most a share of the slots, leave the
    last free slot to other calls, and begin only while no other call waits.

    Args:
        limit: maximum number of concurrent calls, or None for no limit.
        max_waiting: maximum number of waiting calls.
        patience: time limit in seconds for the wait of a call.
        reserve_seconds: seconds (or infinity) for which the last slot is reserved after another
            tenant's call.
        background_share: largest share of the slots for calls in the background; one call may
            always run.
        clock: returns the present monotonic time in seconds.

    Attributes:
        taken: number of running calls, those in the background included.
        waiting: number of waiting calls that are not in the background.
        in_background: number of running calls in the background.
        background_share: largest share of the slots for calls in the background.
        on_full: called when a call must wait, also in the background; may call `set_limit`.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        max_waiting: int = 0,
        patience: float = 0.0,
        reserve_seconds: float = _RESERVE_SECONDS,
        background_share: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.taken = 0
        self.waiting = 0
        self.in_background = 0
        self.background_share = background_share
        self.on_full: Callable[[], None] | None = None
        self._max_waiting = max_waiting
        self._patience = patience
        self._reserve_seconds = reserve_seconds
        self._clock = clock
        self._running: dict[str, int] = {}
        # By tenant, in the order in which the tenants began to wait.
        self._waiters: dict[str, deque[_Waiter]] = {}
        self._background_running: dict[str, int] = {}
        self._background_waiters: dict[str, deque[_Waiter]] = {}
        self._latest_tenant: str | None = None
        self._reserved_until = math.inf if reserve_seconds == math.inf else 0.0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.taken >= self.limit

    @property
    def max_usable(self) -> int | None:
        """The number of calls that may run at the same time; None if there is no limit.

        While only calls in the background wait, this is their share of the limit.
        """
        if self.limit is None or self.is_full or self._waiters or not self._background_waiters:
            return self.limit
        return max(1, min(int(self.limit * self.background_share), self.limit - 1))

    @property
    def is_awaited(self) -> bool:
        """True if any call waits, in the background or not."""
        return bool(self._waiters or self._background_waiters)

    def try_acquire(self, tenant: str) -> bool:
        """Acquire a slot if one is free for the tenant; return True if a slot was acquired.

        The caller must later call `release`.
        """
        limit = self.limit
        if limit is None:
            self.taken += 1
            return True
        if tenant != self._latest_tenant:
            if self._latest_tenant is not None:
                self._reserved_until = self._clock() + self._reserve_seconds
            self._latest_tenant = tenant
        # A slot may be free although calls of this tenant wait, because it is reserved for others.
        if self.taken >= limit or tenant in self._waiters or not self._may_acquire(tenant, limit):
            return False
        self._begin_call(tenant)
        return True

    async def wait(self, tenant: str, max_wait_seconds: float, mean_seconds: float) -> None:
        """Wait until a slot is acquired for the call; the caller must later call `release`.

        Args:
            max_wait_seconds: time limit for the wait, if it is shorter than ``patience``.
            mean_seconds: mean duration of a call, for the ``retry_after`` of an `Overloaded` error.

        Raises:
            Overloaded: The queue is full, or the wait took too long.
        """
        if self.on_full is not None and self.is_full:
            self.on_full()
            if self.try_acquire(tenant):
                return
        if self.waiting >= self._max_waiting and not self._refuse_newest_call(tenant, mean_seconds):
            raise self._make_overloaded_error(mean_seconds)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(tenant, deque()).append(waiter)
        self.waiting += 1
        try:
            async with asyncio.timeout(min(self._patience, max_wait_seconds)):
                await waiter
        except BaseException as error:
            if not waiter.done() or waiter.cancelled():
                self._remove_waiter(tenant, waiter)
            elif waiter.exception() is None:
                # The slot was acquired at the same moment, so another call can have it.
                self.release(tenant)
            if isinstance(error, TimeoutError):
                raise self._make_overloaded_error(mean_seconds) from None
            raise

    def release(self, tenant: str) -> None:
        """Release a slot, so that a waiting call can begin."""
        self.taken -= 1
        if self.limit is None:
            return
        _decrement(self._running, tenant)
        self._begin_waiting_calls()

    async def acquire_in_background(self, tenant: str, max_wait_seconds: float) -> None:
        """Wait for a slot for a call in the background; release it by `release_in_background`.

        The tenant with the fewest running calls in the background comes first. The caller bounds
        the number of waiting calls.

        Raises:
            Overloaded: The wait took longer than ``max_wait_seconds``.
        """
        if self._may_begin_in_background():
            self._begin_in_background(tenant)
            return
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._background_waiters.setdefault(tenant, deque()).append(waiter)
        if self.on_full is not None and not self._waiters:
            self.on_full()
        try:
            async with asyncio.timeout(max_wait_seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                # The slot was acquired at the same moment, so another call can have it.
                self.release_in_background(tenant)
            else:
                self._remove_background_waiter(tenant, waiter)
            if isinstance(error, TimeoutError):
                raise self._make_overloaded_error(max_wait_seconds) from None
            raise

    def release_in_background(self, tenant: str) -> None:
        """Release the slot of a background call, so that a waiting call can begin."""
        self.taken -= 1
        self.in_background -= 1
        _decrement(self._background_running, tenant)
        self._begin_waiting_calls()

    def set_limit(self, limit: int) -> None:
        """Set the maximum number of concurrent calls.

        After a reduction, running calls continue, and no call begins until fewer than ``limit``
        calls are running.
        """
        self.limit = limit
        self._begin_waiting_calls()

    def _begin_waiting_calls(self) -> None:
        """Give free slots to waiting calls; calls in the background come last."""
        while self._waiters and (self.limit is None or self.taken < self.limit):
            next_tenant = min(self._waiters, key=lambda name: self._running.get(name, 0))
            if self.limit is not None and not self._may_acquire(next_tenant, self.limit):
                return
            waiter = _pop_waiter(self._waiters, next_tenant)
            self.waiting -= 1
            if not waiter.done():
                self._begin_call(next_tenant)
                waiter.set_result(None)
        while self._background_waiters and self._may_begin_in_background():
            waiters = self._background_waiters
            next_tenant = min(waiters, key=lambda name: self._background_running.get(name, 0))
            waiter = _pop_waiter(waiters, next_tenant)
            if not waiter.done():
                self._begin_in_background(next_tenant)
                waiter.set_result(None)

    def estimate_wait_seconds(self, mean_seconds: float) -> float:
        """Return the seconds until a new call would begin if each call takes ``mean_seconds``."""
        if self.limit is None or self.taken < self.limit:
            return 0.0
        return (self.waiting + 1) * mean_seconds / self.limit

    def _may_acquire(self, tenant: str, limit: int) -> bool:
        """Return True if the tenant may have the free slot, which may be reserved for others.

        Args:
            limit: the maximum number of concurrent calls.
        """
        if self.taken + 1 < limit or limit == 1 or tenant not in self._running:
            return True
        return len(self._waiters) < 2 and self._clock() >= self._reserved_until

    def _may_begin_in_background(self) -> bool:
        limit = self.limit
        if limit is None:
            return True
        return (
            not self._waiters
            and self.in_background < max(1, int(limit * self.background_share))
            and self.taken < max(1, limit - 1)
        )

    def _begin_in_background(self, tenant: str) -> None:
        self.taken += 1
        self.in_background += 1
        self._background_running[tenant] = self._background_running.get(tenant, 0) + 1

    def _remove_background_waiter(self, tenant: str, waiter: _Waiter) -> None:
        waiters = self._background_waiters.get(tenant)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._background_waiters[tenant]

    def _begin_call(self, tenant: str) -> None:
        self.taken += 1
        self._running[tenant] = self._running.get(tenant, 0) + 1

    def _refuse_newest_call(self, tenant: str, mean_seconds: float) -> bool:
        """Make room in the queue for ``tenant``; return True if another call was refused.

        The newest waiting call of the tenant with the most is refused, if this tenant has at least
        two more waiting calls than ``tenant``.
        """
        if not self._waiters:
            return False
        busiest_tenant = max(self._waiters, key=lambda name: len(self._waiters[name]))
        if len(self._waiters[busiest_tenant]) <= len(self._waiters.get(tenant, ())) + 1:
            return False
        waiter = self._waiters[busiest_tenant][-1]
        self._remove_waiter(busiest_tenant, waiter)
        if not waiter.done():
            waiter.set_exception(self._make_overloaded_error(mean_seconds))
        return True

    def _remove_waiter(self, tenant: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(tenant)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        self.waiting -= 1
        if not waiters:
            del self._waiters[tenant]

    def _make_overloaded_error(self, mean_seconds: float) -> Overloaded:
        return Overloaded(
            "too many requests are running and waiting for this service; try again later",
            retry_after=max(1.0, self.estimate_wait_seconds(mean_seconds)),
        )


def _decrement(counts: dict[str, int], tenant: str) -> None:
    count = counts[tenant] - 1
    if count:
        counts[tenant] = count
    else:
        del counts[tenant]


def _pop_waiter(waiters_by_tenant: dict[str, deque[_Waiter]], tenant: str) -> _Waiter:
    """Remove and return the first waiter of a tenant; put the tenant behind the other tenants."""
    waiters = waiters_by_tenant.pop(tenant)
    waiter = waiters.popleft()
    if waiters:
        waiters_by_tenant[tenant] = waiters
    return waiter
