"""Samples the requests to learn from, with a limit per second that is fair among tenants."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

# Requests per second that a replica learns from. Each takes 100 to 200 microseconds including SQL
# and Valkey, so learning uses at most two per cent of a core.
_REQUESTS_PER_SECOND = 100
# Share of the capacity that is reserved for tenants with few requests.
_RESERVED_SHARE = 0.5


class FairSampler:
    """Sampler that is fair among tenants (max-min fairness).

    Below the rate, all requests are accepted. Above the rate, all requests of tenants with few
    requests are accepted, and the other tenants divide the rest equally. Each request of a tenant
    has the same probability.

    Args:
        rate: maximum of accepted requests per second on average; a burst may have twice as many.
        clock: returns monotonic seconds.
        draw_random: returns a random number in [0, 1).

    Attributes:
        accepted: number of requests that were accepted.
        skipped: number of requests that were not accepted.
    """

    def __init__(
        self,
        rate: float = _REQUESTS_PER_SECOND,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw_random: Callable[[], float] = random.random,
    ) -> None:
        self.accepted = self.skipped = 0
        self._rate = rate
        self._clock = clock
        self._draw_random = draw_random
        self._tokens = 2 * rate  # capacity of a token bucket
        self._refilled_at = self._second_began = clock()
        # Requests by tenant in this second, and decayed counts of the earlier seconds.
        self._counts: dict[str, int] = {}
        self._earlier_counts: dict[str, float] = {}
        self._total, self._next_check_total = 0, rate
        # A tenant with at most this many requests per second has all of them accepted.
        self._fair_share = math.inf

    def accept(self, owner: str) -> bool:
        """Return True if a new request of this tenant is in the sample."""
        now = self._clock()
        if now - self._second_began >= 1.0:
            self._start_second(now)
        self._tokens = min(self._tokens + (now - self._refilled_at) * self._rate, 2 * self._rate)
        self._refilled_at = now
        request_count: float = self._counts.get(owner, 0) + 1
        self._counts[owner] = int(request_count)
        self._total += 1
        if self._total > self._next_check_total:
            # A burst that has just begun does not appear in the counts of earlier seconds.
            self._next_check_total *= 2
            self._fair_share = self._compute_fair_share()
        request_count = max(request_count, self._earlier_counts.get(owner, 0.0))
        fair_share = self._fair_share
        if self._tokens < 1.0 or (
            request_count > fair_share
            and (
                self._tokens < self._rate * _RESERVED_SHARE
                or self._draw_random() * request_count >= fair_share
            )
        ):
            self.skipped += 1
            return False
        self._tokens -= 1.0
        self.accepted += 1
        return True

    def _start_second(self, now: float) -> None:
        """Start a new second, and update the estimate of how many requests each tenant sends.

        The estimate of a tenant falls by half per second without requests.

        Args:
            now: the current time in seconds, from the sampler's clock.
        """
        fade_factor = 0.5 ** min(int(now - self._second_began), 60)
        earlier_counts = {
            owner: count * fade_factor for owner, count in self._earlier_counts.items()
        }
        for owner, count in self._counts.items():
            earlier_counts[owner] = max(count * fade_factor * 2, earlier_counts.get(owner, 0.0))
        self._earlier_counts = {
            owner: count for owner, count in earlier_counts.items() if count >= 1.0
        }
        self._counts, self._total = {}, 0
        self._next_check_total, self._second_began = self._rate, now
        self._fair_share = self._compute_fair_share()

    def _compute_fair_share(self) -> float:
        counts = sorted(
            max(self._counts.get(owner, 0), self._earlier_counts.get(owner, 0.0))
            for owner in self._counts.keys() | self._earlier_counts.keys()
        )
        remaining_rate = self._rate
        for index, count in enumerate(counts):
            share = remaining_rate / (len(counts) - index)
            if count > share:
                return share
            remaining_rate -= count
        return math.inf
