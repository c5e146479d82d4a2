"""Gives waiting renders to renderers as those become free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from moyin.errors import ServiceUnavailable
from moyin.render.scheduling.policy import PendingRender
from moyin.render.scheduling.window import Window

__all__ = ["Lease", "RenderScheduler"]

# When to come again to a dispatcher that has closed: by then another has taken over, or will.
_AGAIN_SECONDS = 1.0
# Some renders wait although a renderer is free: how often to ask whether they still should.
_LOOK_SECONDS = 0.5


class Lease:
    """The right to use the renderer ``name`` alone, until released."""

    def __init__(self, name: str, release: Callable[[], None]) -> None:
        self.name = name
        self._release = release
        self._held = True

    def release(self) -> None:
        """Let the next one in; releasing twice is releasing once."""
        if self._held:
            self._held = False
            self._release()


class RenderScheduler:
    """One render per renderer at a time. All methods belong to one event loop.

    Args:
        window: decides; it is this dispatcher's alone.
        clock: seconds; that of the renders' deadlines.
    """

    def __init__(
        self, window: Window | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._window = window or Window()
        self._clock = clock
        self._up: set[str] = set()
        # By a clock that nobody sets: when each was leased.
        self._leased: dict[str, float] = {}
        self._foreign: dict[str, frozenset[str]] = {}
        # By identity: two attempts of one render may wait side by side and be equal.
        self._granted: dict[int, asyncio.Future[Lease]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._window)

    @property
    def service(self) -> float:
        """Seconds that a render takes, on average."""
        return self._window.service

    @property
    def changes(self) -> int:
        """How often a renderer had to load models."""
        return self._window.changes

    def idle(self, name: str) -> float | None:
        """Seconds for which the renderer has been free; None when it is not."""
        return self._window.idle(name, self._clock())

    def up(self, name: str, foreign: Collection[str] = (), models: Sequence[str] = ()) -> None:
        """The renderer takes work.

        Args:
            foreign: prompts that run on it without a lease, left there by an earlier process; it
                gets no others before they have ended.
            models: files that it has in memory; the largest first.
        """
        self._foreign[name] = frozenset(foreign)
        if name not in self._up:
            self._up.add(name)
            self._window.seat(name, models, self._clock())
        if self._busy(name):
            self._window.hold(name)
        else:
            self._window.free(name, self._clock())
        self._match()

    def down(self, name: str) -> None:
        """The renderer takes no work for now; a lease on it stays valid until released."""
        self._up.discard(name)
        self._window.unseat(name)

    def close(self) -> None:
        """Nobody gets a renderer any more; those who have one keep it."""
        self._closed = True
        for granted in self._granted.values():
            if not granted.done():
                granted.set_exception(_ended())

    @asynccontextmanager
    async def lease(self, waiting: PendingRender) -> AsyncIterator[Lease]:
        """Wait for a renderer and hold it for the block, or until it is released earlier.

        Raises:
            ServiceUnavailable: the dispatcher is closed, or closes meanwhile.
        """
        if self._closed:
            raise _ended()
        waiting = replace(waiting, entered=self._clock())
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._granted[id(waiting)] = granted
        self._window.enter(waiting)
        self._match()
        try:
            lease = await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                granted.result().release()
            raise
        finally:
            self._granted.pop(id(waiting), None)
            self._window.leave(waiting)
        try:
            yield lease
        finally:
            lease.release()

    def next_for(self, name: str) -> PendingRender | None:
        """What the busy renderer would probably get if it became free now."""
        return self._window.foresee(name, self._clock())

    def _match(self) -> None:
        now = self._clock()
        while (choice := self._window.choose(now)) is not None:
            granted = self._granted.pop(id(choice.waiting))
            if granted.done():
                self._window.leave(choice.waiting)
                continue
            name = choice.seat.name
            self._window.begin(choice, now)
            self._leased[name] = time.monotonic()
            granted.set_result(Lease(name, partial(self._release, name)))
        if self._window.undecided and self._looking is None:
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        self._match()

    def _busy(self, name: str) -> bool:
        return name in self._leased or bool(self._foreign.get(name))

    def _release(self, name: str) -> None:
        now = self._clock()
        self._window.end(time.monotonic() - self._leased.pop(name))
        if name in self._up and not self._busy(name):
            self._window.free(name, now)
        self._match()


def _ended() -> ServiceUnavailable:
    return ServiceUnavailable("these renderers take no more", retry_after=_AGAIN_SECONDS)
