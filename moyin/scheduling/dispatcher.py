"""Gives waiting renders to renderers as those become free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial

from moyin.scheduling.policy import Waiting, order

__all__ = ["Dispatcher", "Lease"]


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


class Dispatcher:
    """One render per renderer at a time. All methods belong to one event loop.

    Args:
        policy: puts the waiting renders in order; asked each time a renderer becomes free.
    """

    def __init__(self, policy: Callable[[Iterable[Waiting]], list[Waiting]] = order) -> None:
        self._policy = policy
        self._up: set[str] = set()
        self._leased: set[str] = set()
        self._foreign: dict[str, frozenset[str]] = {}
        # Free for longest first.
        self._rested: dict[str, None] = {}
        # By identity: two attempts of one render may wait side by side and be equal.
        self._waiting: dict[int, tuple[Waiting, asyncio.Future[Lease]]] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def up(self, name: str, foreign: Collection[str] = ()) -> None:
        """The renderer takes work.

        Args:
            foreign: prompts that run on it without a lease, left there by an earlier process; it
                gets no others before they have ended.
        """
        self._up.add(name)
        self._rested.setdefault(name)
        self._foreign[name] = frozenset(foreign)
        self._match()

    def down(self, name: str) -> None:
        """The renderer takes no work for now; a lease on it stays valid until released."""
        self._up.discard(name)

    @asynccontextmanager
    async def lease(self, waiting: Waiting) -> AsyncIterator[Lease]:
        """Wait for a renderer and hold it for the block, or until it is released earlier."""
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[id(granted)] = (waiting, granted)
        self._match()
        try:
            lease = await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                granted.result().release()
            raise
        finally:
            self._waiting.pop(id(granted), None)
        try:
            yield lease
        finally:
            lease.release()

    def _match(self) -> None:
        for name in [name for name in self._rested if self._free(name)]:
            granted = self._next()
            if granted is None:
                return
            self._leased.add(name)
            del self._rested[name]
            granted.set_result(Lease(name, partial(self._release, name)))

    def _next(self) -> asyncio.Future[Lease] | None:
        entries = {id(waiting): key for key, (waiting, _) in self._waiting.items()}
        for waiting in self._policy([waiting for waiting, _ in self._waiting.values()]):
            _, granted = self._waiting.pop(entries[id(waiting)])
            if not granted.done():
                return granted
        return None

    def _free(self, name: str) -> bool:
        return name in self._up and name not in self._leased and not self._foreign.get(name)

    def _release(self, name: str) -> None:
        self._leased.discard(name)
        self._rested.setdefault(name)
        self._match()
