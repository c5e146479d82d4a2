"""Assigns waiting renders to renderers when these become free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from moyin.errors import ServiceUnavailable
from moyin.render.measurements import RenderMeasurements
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.start_errors import StartErrors
from moyin.render.scheduling.waits import WaitTimes
from moyin.render.scheduling.window import Expectation, Window

# Retry-After in seconds of a closed scheduler; a new replica of the pool replaces it meanwhile.
_RETRY_SECONDS = 1.0
# Seconds between checks of whether a free renderer should switch to other models.
_CHECK_SECONDS = 0.5
# A long forecast would delay the assignment of renders. The time of each choice grows with the
# number of flows, so the product of renders and flows is bounded as well.
_MAX_FORECAST = 256
_MIN_FORECAST = 8
_MAX_FORECAST_WORK = 51_200


class Lease:
    """The exclusive right to use the renderer ``name``, which lasts until `release` is called.

    Attributes:
        load_seconds: estimated seconds to load the render's models.
    """

    def __init__(self, name: str, load_seconds: float, release: Callable[[bool], None]) -> None:
        self.name = name
        self.load_seconds = load_seconds
        self._release = release
        self._is_held = True

    def release(self, *, has_failed: bool = False) -> None:
        """Release the renderer for the next render; a second call has no effect.

        Args:
            has_failed: True if the render was not executed to its end.
        """
        if self._is_held:
            self._is_held = False
            self._release(has_failed)


class RenderScheduler:
    """Leases each renderer of a pool to one waiting render at a time.

    All methods must be called from the same event loop.

    Args:
        window: decides the order; no other object may use the same window.
        clock: returns the present time in seconds, by the clock of the renders' deadlines.
    """

    def __init__(
        self, window: Window | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        # Not `window or Window()`, because an empty window is falsy.
        self._window = Window() if window is None else window
        self._clock = clock
        self._start_errors = StartErrors()
        self._waits = WaitTimes()
        self._renderers: set[str] = set()
        # The monotonic time at which each lease began, by renderer.
        self._leased: dict[str, float] = {}
        self._foreign_prompts: dict[str, frozenset[str]] = {}
        # The keys are `id()`s, because two equal attempts at one render may wait at the same time.
        self._pending_leases: dict[int, asyncio.Future[Lease]] = {}
        self._next_check: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def waiting_count(self) -> int:
        return len(self._window)

    @property
    def mean_seconds(self) -> float:
        return self._window.mean_seconds

    @property
    def model_change_count(self) -> int:
        return self._window.model_change_count

    @property
    def running_count(self) -> int:
        """The number of busy renderers, including those with a prompt of an earlier scheduler."""
        return sum(self._is_executing(name) for name in self._renderers | self._leased.keys())

    @property
    def oldest_wait(self) -> float | None:
        """The seconds since the oldest waiting render arrived, or None if none is waiting."""
        arrival_time = self._window.oldest_arrival
        return None if arrival_time is None else max(0.0, self._clock() - arrival_time)

    def compute_wait_quantile(self, share: float) -> float | None:
        """Return the waiting time that the given share (0 to 1) of recent renders did not exceed.

        The result is in seconds, or None if no render began in the last hour. A ``share`` of 0.5
        means the median.
        """
        return self._waits.compute_quantile(share, self._clock())

    def is_busy(self, name: str) -> bool:
        """Return whether the renderer executes a render."""
        return self._is_executing(name)

    def measure_idle_seconds(self, name: str) -> float | None:
        """Return how many seconds the renderer has been free, or None if it is busy."""
        return self._window.measure_idle_seconds(name, self._clock())

    def add_renderer(
        self,
        name: str,
        foreign_prompts: Collection[str] = (),
        models: Sequence[str] = (),
        tenant: str = "",
    ) -> None:
        """Add a renderer, or update the foreign prompts of a known renderer.

        Args:
            foreign_prompts: ids of prompts that an earlier scheduler started on the renderer. No
                render is assigned to the renderer until these prompts have ended.
            models: model files in the renderer's memory, the largest first.
            tenant: the tenant that the renderer's process is bound to, or "" if there is none.
        """
        self._foreign_prompts[name] = frozenset(foreign_prompts)
        if name not in self._renderers:
            self._renderers.add(name)
            self._window.add_renderer(name, models, self._clock(), tenant)
        elif not self._is_executing(name):
            self._window.set_tenant(name, tenant, models, self._clock())
        if self._is_executing(name):
            self._window.mark_busy(name)
        else:
            self._window.mark_free(name, self._clock())
        self._assign_renders()

    def record_restart_seconds(self, seconds: float) -> None:
        """Record how long the restart of a renderer's process takes."""
        self._window.restart_seconds = seconds

    def list_renderers_of(self, tenant: str) -> list[str]:
        """Return the names of the renderers whose processes are bound to the tenant."""
        return self._window.list_renderers_of(tenant)

    def remove_renderer(self, name: str) -> None:
        """Stop assigning renders to the renderer; its present lease stays valid until released."""
        self._renderers.discard(name)
        self._window.remove_renderer(name)

    def close(self) -> None:
        """Reject all waiting and new renders; present leases stay valid."""
        self._is_closed = True
        for lease_future in self._pending_leases.values():
            if not lease_future.done():
                lease_future.set_exception(_make_closed_error())

    @asynccontextmanager
    async def lease(self, pending_render: PendingRender) -> AsyncIterator[Lease]:
        """Wait for a free renderer and lease it until the block ends or releases the lease.

        Raises `ServiceUnavailable` if the scheduler is closed while the render waits.
        """
        if self._is_closed:
            raise _make_closed_error()
        pending_render = replace(pending_render, entered=self._clock())
        lease_future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._pending_leases[id(pending_render)] = lease_future
        self._window.add(pending_render)
        self._assign_renders()
        try:
            lease = await lease_future
        except asyncio.CancelledError:
            if (
                lease_future.done()
                and not lease_future.cancelled()
                and lease_future.exception() is None
            ):
                lease_future.result().release(has_failed=True)
            raise
        finally:
            self._pending_leases.pop(id(pending_render), None)
            self._window.remove(pending_render)
            self._start_errors.drop_forecast(pending_render.id)
        try:
            yield lease
        except BaseException:
            lease.release(has_failed=True)
            raise
        lease.release()

    @property
    def measurements(self) -> RenderMeasurements:
        return self._window.measurements

    def forecast(self) -> list[Expectation]:
        """Return the next waiting renders with their expected times, in the expected order.

        The number of renders is limited, because a forecast of a long queue takes much time.
        """
        now = self._clock()
        max_renders = _MAX_FORECAST_WORK // max(1, self._window.flow_count)
        max_renders = max(_MIN_FORECAST, min(_MAX_FORECAST, max_renders))
        return self._start_errors.widen_forecasts(self._window.forecast(now, max_renders), now)

    def list_running(self) -> list[Expectation]:
        """Return the renders that have been assigned to a renderer, with their expected times."""
        return self._window.list_running(self._clock())

    def peek_next(self, name: str) -> PendingRender | None:
        """Return the render that a busy renderer would get if it became free now.

        Returns None if every waiting render needs other models.
        """
        return self._window.peek_next(name, self._clock())

    def _assign_renders(self) -> None:
        now = self._clock()
        while (choice := self._window.choose_assignment(now)) is not None:
            lease_future = self._pending_leases.pop(id(choice.pending))
            if lease_future.done():
                self._window.remove(choice.pending)
                continue
            name = choice.slot.name
            self._window.begin_render(choice, now)
            self._start_errors.record_start(choice.pending.id, now)
            self._waits.record(now - choice.pending.arrived, now)
            self._leased[name] = time.monotonic()
            load_seconds = choice.slot.load_seconds
            lease_future.set_result(Lease(name, load_seconds, partial(self._release, name)))
        if self._window.must_choose_again and self._next_check is None:
            loop = asyncio.get_running_loop()
            self._next_check = loop.call_later(_CHECK_SECONDS, self._check_again)

    def _check_again(self) -> None:
        self._next_check = None
        self._assign_renders()

    def _is_executing(self, name: str) -> bool:
        return name in self._leased or bool(self._foreign_prompts.get(name))

    def _release(self, name: str, has_failed: bool) -> None:
        now = self._clock()
        seconds = time.monotonic() - self._leased.pop(name)
        self._window.end_render(name, seconds, has_failed=has_failed)
        if name in self._renderers and not self._is_executing(name):
            self._window.mark_free(name, now)
        self._assign_renders()


def _make_closed_error() -> ServiceUnavailable:
    message = "this replica of the render pool is shutting down; try again"
    return ServiceUnavailable(message, retry_after=_RETRY_SECONDS)
