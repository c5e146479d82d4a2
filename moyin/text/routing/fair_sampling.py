"""Which requests are learned from: all while there are few, a fair sample of many. Pure."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

__all__ = ["FairSampler"]

# Requests a second that a replica learns from. One takes some 100 to 200 microseconds, with its share of
# SQL and Valkey: that is one or two per cent of a core, however many requests there are.
_RATE = 100
# Who asks much leaves this share of the places to who asks little.
_KEPT = 0.5


class FairSampler:
    """Draws requests at random, so that on average no more than ``rate`` a second are taken, and at
    most twice as many at once.

    Below the rate every request is taken. Above it, tenants that ask less than their share are taken
    in full, and the others share what those leave: each of their requests has the same chance, so that
    no part of a second is preferred.

    Attributes:
        accepted: requests so far.
        skipped: those that were not drawn.
    """

    def __init__(
        self,
        rate: float = _RATE,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.accepted = self.skipped = 0
        self._rate = rate
        self._clock = clock
        self._draw = draw
        self._left = 2 * rate  # places
        self._at = self._began = clock()
        # Requests by tenant in this second; in those before, of which older ones count less.
        self._now: dict[str, int] = {}
        self._before: dict[str, float] = {}
        self._count, self._look = 0, rate
        # Requests a second up to which a tenant is taken in full.
        self._level = math.inf

    def accept(self, owner: str) -> bool:
        """Return whether the request of a tenant that has just come is learned from."""
        now = self._clock()
        if now - self._began >= 1.0:
            self._turn(now)
        self._left = min(self._left + (now - self._at) * self._rate, 2 * self._rate)
        self._at = now
        asked: float = self._now.get(owner, 0) + 1
        self._now[owner] = int(asked)
        self._count += 1
        if self._count > self._look:
            # A flood that has just begun is not in the numbers of the seconds before.
            self._look *= 2
            self._level = self._fair()
        asked = max(asked, self._before.get(owner, 0.0))
        level = self._level
        if self._left < 1.0 or (
            asked > level and (self._left < self._rate * _KEPT or self._draw() * asked >= level)
        ):
            self.skipped += 1
            return False
        self._left -= 1.0
        self.accepted += 1
        return True

    def _turn(self, now: float) -> None:
        """Begin another second."""
        fade = 0.5 ** min(int(now - self._began), 60)
        before = {owner: count * fade for owner, count in self._before.items()}
        for owner, count in self._now.items():
            before[owner] = max(count * fade * 2, before.get(owner, 0.0))
        self._before = {owner: count for owner, count in before.items() if count >= 1.0}
        self._now, self._count, self._look, self._began = {}, 0, self._rate, now
        self._level = self._fair()

    def _fair(self) -> float:
        counts = sorted(
            max(self._now.get(owner, 0), self._before.get(owner, 0.0))
            for owner in self._now.keys() | self._before.keys()
        )
        left = self._rate
        for place, count in enumerate(counts):
            share = left / (len(counts) - place)
            if count > share:
                return share
            left -= count
        return math.inf
