"""Runs the processing of large requests in threads, so that it does not hold the event loop.

Python runs one thread at a time. A thread gives way to the event loop every switch interval
(`sys.setswitchinterval`), and only one function of all large requests runs at a time, so that other
requests get at least half of the processor time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from moyin.system.slots import Slots

P = ParamSpec("P")
T = TypeVar("T")

# Requests below this size in bytes are processed in the event loop, within some milliseconds.
_LARGE_BYTES = 64 * 1024
_MAX_REQUESTS = 2
_MAX_WAITING = 64
_PATIENCE_SECONDS = 30.0
_MEAN_SECONDS = 0.5
# The next large request of a tenant waits for so many times as long as the last one took, so that
# most requests of others meet no large one; and at most for so many seconds.
_PAUSE_FACTOR = 3.0
_MAX_PAUSE_SECONDS = 5.0


class _LargeRequest:
    """A large request that is being processed; ``seconds`` is the time that it has taken so far."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self.turn = turn
        self.seconds = 0.0


_current_request: ContextVar[_LargeRequest | None] = ContextVar("large_request", default=None)


class HeavyWork:
    """Admits large requests: one of a tenant at a time, and two of different tenants.

    Further ones wait in a bounded queue. After a request, its place stays taken for three times as
    long as processing took, so that a tenant's large requests take a quarter of the processor time.

    Args:
        slots: limits the concurrent large requests, and shares them fairly between tenants.
        large_bytes: the size in bytes from which a request is large.
    """

    def __init__(self, slots: Slots | None = None, *, large_bytes: int = _LARGE_BYTES) -> None:
        # One slot is always left to other tenants.
        self._slots = slots or Slots(
            _MAX_REQUESTS,
            max_waiting=_MAX_WAITING,
            patience=_PATIENCE_SECONDS,
            reserve_seconds=math.inf,
        )
        self._large_bytes = large_bytes
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def admit(self, tenant: str, size: float) -> AsyncIterator[None]:
        """Wait for the tenant's turn if a request of ``size`` bytes is large.

        Within the context, `run_aside` runs functions in a thread. Contexts may be nested.

        Raises:
            Overloaded: too many large requests are waiting, or the wait took too long.
        """
        if size < self._large_bytes or _current_request.get() is not None:
            yield
            return
        if not self._slots.try_acquire(tenant):
            await self._slots.wait(tenant, _PATIENCE_SECONDS, _MEAN_SECONDS)
        request = _LargeRequest(self._turn)
        token = _current_request.set(request)
        try:
            yield
        finally:
            _current_request.reset(token)
            pause = min(_PAUSE_FACTOR * request.seconds, _MAX_PAUSE_SECONDS)
            asyncio.get_running_loop().call_later(pause, self._slots.release, tenant)


async def run_aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of a function, which runs in a thread if the present request is large."""
    request = _current_request.get()
    if request is None:
        return function(*args, **kwargs)
    async with request.turn:
        started_at = time.perf_counter()
        running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        finally:
            # A thread cannot be cancelled, so it keeps its turn until it ends.
            await asyncio.wait([running])
            request.seconds += time.perf_counter() - started_at
