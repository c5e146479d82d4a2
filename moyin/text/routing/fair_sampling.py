"""Chooses the requests to learn from: all while there are few, a fair sample of many. Pure."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

__all__ = ["FairSampler"]

# Requests a second that a replica learns from. Each takes 100 to 200 microseconds including SQL and
# Valkey, so learning never takes more than one or two per cent of a core.
_RATE = 100
# Busy tenants leave this share of the capacity to those with few requests.
_RESERVED_SHARE = 0.5


class FairSampler:
    """Samples at most ``rate`` requests a second on average, and at most twice as many in a burst.

    Below the rate every request is accepted. Above it, tenants with fewer requests than their
    share are accepted in full, and the others divide the rest. All requests of one tenant have the
    same chance, so no part of a second is preferred.

    Attributes:
        accepted: requests accepted so far.
        skipped: requests that were not accepted.
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
        self._tokens = 2 * rate  # capacity of a token bucket
        self._refilled_at = self._second_began = clock()
        # Requests by tenant in this second, and in earlier ones with decay.
        self._counts: dict[str, int] = {}
        self._earlier_counts: dict[str, float] = {}
        self._total, self._next_level_check = 0, rate
        # Requests a second up to which a tenant is accepted in full.
        self._level = math.inf

    def accept(self, owner: str) -> bool:
        """Return whether to learn from a new request of this tenant."""
        now = self._clock()
        if now - self._second_began >= 1.0:
            self._start_second(now)
        self._tokens = min(self._tokens + (now - self._refilled_at) * self._rate, 2 * self._rate)
        self._refilled_at = now
        requests: float = self._counts.get(owner, 0) + 1
        self._counts[owner] = int(requests)
        self._total += 1
        if self._total > self._next_level_check:
            # The counts of earlier seconds do not show a burst that has just begun.
            self._next_level_check *= 2
            self._level = self._fair_level()
        requests = max(requests, self._earlier_counts.get(owner, 0.0))
        level = self._level
        if self._tokens < 1.0 or (
            requests > level
            and (self._tokens < self._rate * _RESERVED_SHARE or self._draw() * requests >= level)
        ):
            self.skipped += 1
            return False
        self._tokens -= 1.0
        self.accepted += 1
        return True

    def _start_second(self, now: float) -> None:
        """Start the count of another second."""
        fade = 0.5 ** min(int(now - self._second_began), 60)
        earlier = {owner: count * fade for owner, count in self._earlier_counts.items()}
        for owner, count in self._counts.items():
            earlier[owner] = max(count * fade * 2, earlier.get(owner, 0.0))
        self._earlier_counts = {owner: count for owner, count in earlier.items() if count >= 1.0}
        self._counts, self._total, self._next_level_check, self._second_began = (
            {},
            0,
            self._rate,
            now,
        )
        self._level = self._fair_level()

    def _fair_level(self) -> float:
        counts = sorted(
            max(self._counts.get(owner, 0), self._earlier_counts.get(owner, 0.0))
            for owner in self._counts.keys() | self._earlier_counts.keys()
        )
        remaining = self._rate
        for index, count in enumerate(counts):
            share = remaining / (len(counts) - index)
            if count > share:
                return share
            remaining -= count
        return math.inf
