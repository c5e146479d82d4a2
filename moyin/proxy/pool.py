"""The upstreams of one route: which may be asked, and which is asked next. No I/O."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from moyin.errors import Overloaded, ServiceUnavailable
from moyin.http.breaker import Breaker
from moyin.proxy.route import Balance, HealthCheck, Route, Upstream

__all__ = ["RETRY_AFTER_SECONDS", "TRY_ELSEWHERE", "Member", "Pool", "UnderWay", "choose"]

# Answers of a server that is going, or not there yet, rather than of the service.
TRY_ELSEWHERE = frozenset({502, 503, 504})
_log = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 2.0


class Member:
    """One upstream of a route, and what this replica knows of it.

    Attributes:
        active: exchanges under way.
        breaker: opens by failures of real requests (passive health).
        up: what the active checks say.
    """

    def __init__(self, upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        self.upstream = upstream
        self.active = 0
        self.breaker = Breaker(clock)
        self.up = True
        self.credit = 0
        self._streak = 0

    @property
    def usable(self) -> bool:
        return self.up and self.breaker.ready

    def checked(self, passed: bool, check: HealthCheck) -> None:
        """Take note of an active check's result."""
        if passed == self.up:
            self._streak = 0
            return
        self._streak += 1
        if self._streak < (check.rise if passed else check.fall):
            return
        self.up, self._streak = passed, 0
        if passed:
            # What it did wrong before it was repaired says nothing about it now.
            self.breaker.succeed()
        _log.warning("upstream %s is %s", self.upstream.url, "up" if passed else "down")


class UnderWay:
    """Requests of one route that are under way, through whichever of its pools they came."""

    def __init__(self) -> None:
        self.count = 0


class Pool:
    """A route with its members, and whose turn it is.

    Args:
        under_way: shared with the route's pools before this one, whose requests still take room.
    """

    def __init__(
        self, route: Route, members: Sequence[Member], under_way: UnderWay | None = None
    ) -> None:
        self.route = route
        self.members = tuple(members)
        self._turn = 0
        self._under_way = under_way or UnderWay()

    @classmethod
    def build(
        cls, route: Route, known: Mapping[str, Member], under_way: UnderWay | None = None
    ) -> Pool:
        """A pool whose upstreams keep their history, by URL, from the pool before it."""
        members = []
        for upstream in route.upstreams:
            member = known.get(upstream.url) or Member(upstream)
            member.upstream = upstream
            if route.health is None:
                # Nobody would ever find it healthy again.
                member.up = True
            members.append(member)
        return cls(route, members, under_way)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A request on its way through this pool.

        Raises:
            Overloaded: there are as many as the route allows.
        """
        limit = self.route.concurrent
        if limit is not None and self._under_way.count >= limit:
            raise Overloaded(f"the service {self.route.name!r} is busy", retry_after=1)
        self._under_way.count += 1
        try:
            yield
        finally:
            self._under_way.count -= 1

    def pick(self, sticky: str | None, tried: Collection[Member]) -> Member | None:
        """The member to ask next; None when there is no other.

        Args:
            sticky: the value that ties a client to an upstream, if any.
        """
        usable = [m for m in self.members if m.usable and m not in tried]
        if not usable:
            return self._last_resort(tried)
        if sticky is not None:
            member = max(usable, key=lambda m: _affinity(sticky, m))
        else:
            member = choose(self.route.balance, usable, self._turn)
            self._turn += 1
        member.breaker.admit()
        return member

    def has_another(self, tried: Collection[Member]) -> bool:
        """Whether somebody else than those who were may be asked."""
        if len(tried) > self.route.retries:
            return False
        return any(m.usable and m not in tried for m in self.members)

    def _last_resort(self, tried: Collection[Member]) -> Member | None:
        """Of several that all failed lately one may be well again: ask who is due first."""
        if len(self.members) == 1:
            return None
        left = [m for m in self.members if m.up and m not in tried]
        return min(left, key=lambda m: m.breaker.retry_after, default=None)

    def nobody(self) -> ServiceUnavailable:
        """What to say when no member may be asked."""
        waits = [m.breaker.retry_after for m in self.members if m.up and m.breaker.retry_after > 0]
        return ServiceUnavailable(
            f"the service {self.route.name!r} is not available",
            retry_after=min(waits, default=RETRY_AFTER_SECONDS),
        )


def choose(balance: Balance, usable: Sequence[Member], turn: int) -> Member:
    """The member whose turn it is; ``usable`` is not empty."""
    if balance is Balance.LEAST_CONNECTIONS:
        # Equals take turns, or the first would get every request of a quiet hour.
        order = [*usable[turn % len(usable) :], *usable[: turn % len(usable)]]
        return min(order, key=lambda m: (m.active + 1) / m.upstream.weight)
    if balance is Balance.WEIGHTED:
        return _smooth(usable)
    return usable[turn % len(usable)]


def _smooth(usable: Sequence[Member]) -> Member:
    """Smooth weighted round robin: in proportion, without runs on the heaviest."""
    for member in usable:
        member.credit += member.upstream.weight
    chosen = max(usable, key=lambda m: m.credit)
    chosen.credit -= sum(m.upstream.weight for m in usable)
    return chosen


def _affinity(value: str, member: Member) -> bytes:
    """Rendezvous hashing: when a member goes, only its own clients move."""
    return hashlib.blake2b(f"{value}\0{member.upstream.url}".encode(), digest_size=8).digest()
