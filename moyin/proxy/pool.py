"""Chooses the upstream of each request, from health checks and the outcome of real requests."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import aiohttp
from yarl import URL

from moyin.errors import Overloaded, ServiceUnavailable
from moyin.http.breaker import Breaker
from moyin.proxy.route import Balance, HealthCheck, Route, Upstream

__all__ = [
    "RETRYABLE_STATUSES",
    "RETRY_AFTER_SECONDS",
    "InFlightCount",
    "Pool",
    "PoolMember",
    "choose_member",
    "run_health_checks",
]

# A server that is starting or stopping answers with these; the service itself rarely does.
RETRYABLE_STATUSES = frozenset({502, 503, 504})
_log = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 2.0


class PoolMember:
    """Tracks the load and health of one upstream, as this replica sees them.

    Attributes:
        active: the number of open requests.
        breaker: opens when real requests fail (passive health check).
        up: the result of the active health checks.
        credit: used by weighted balancing.
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
        """True if the upstream is healthy and its breaker admits a request."""
        return self.up and self.breaker.ready

    def record_check(self, passed: bool, check: HealthCheck) -> None:
        """Record the result of an active check."""
        if passed == self.up:
            self._streak = 0
            return
        self._streak += 1
        if self._streak < (check.rise if passed else check.fall):
            return
        self.up, self._streak = passed, 0
        if passed:
            # Failures before the recovery say nothing about the upstream now.
            self.breaker.succeed()
        _log.warning("upstream %s is %s", self.upstream.url, "up" if passed else "down")


class InFlightCount:
    """Counts the requests in flight of one route, across its successive pools."""

    def __init__(self) -> None:
        self.count = 0


class Pool:
    """Balances the requests of one route over its upstreams.

    Args:
        in_flight: shared with the route's earlier pools, whose requests still count.
    """

    def __init__(
        self, route: Route, members: Sequence[PoolMember], in_flight: InFlightCount | None = None
    ) -> None:
        self.route = route
        self.members = tuple(members)
        self._turn = 0
        self._in_flight = in_flight or InFlightCount()

    @classmethod
    def build(
        cls, route: Route, known: Mapping[str, PoolMember], in_flight: InFlightCount | None = None
    ) -> Pool:
        """Build a pool that keeps the ``known`` members, by URL, of the route's previous pool."""
        members = []
        for upstream in route.upstreams:
            member = known.get(upstream.url) or PoolMember(upstream)
            member.upstream = upstream
            if route.health is None:
                # Without health checks nothing would ever mark the upstream as up again.
                member.up = True
            members.append(member)
        return cls(route, members, in_flight)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as in flight for as long as the context is open.

        Raises:
            Overloaded: the route's ``concurrent`` limit is reached.
        """
        limit = self.route.concurrent
        if limit is not None and self._in_flight.count >= limit:
            message = f"the service {self.route.name!r} has {limit} requests in flight, its limit"
            raise Overloaded(message, retry_after=1)
        self._in_flight.count += 1
        try:
            yield
        finally:
            self._in_flight.count -= 1

    def pick(self, sticky: str | None, tried: Collection[PoolMember]) -> PoolMember | None:
        """Return the member to send the request to; None when no untried member is usable.

        Args:
            sticky: the header value that ties a client to one upstream, if any.
        """
        usable = [m for m in self.members if m.usable and m not in tried]
        if not usable:
            return self._next_due(tried)
        if sticky is not None:
            member = max(usable, key=lambda m: _affinity(sticky, m))
        else:
            member = choose_member(self.route.balance, usable, self._turn)
            self._turn += 1
        member.breaker.admit()
        return member

    def has_another(self, tried: Collection[PoolMember]) -> bool:
        """Return whether the request may be retried on another member."""
        if len(tried) > self.route.retries:
            return False
        return any(m.usable and m not in tried for m in self.members)

    def _next_due(self, tried: Collection[PoolMember]) -> PoolMember | None:
        """Return the member whose breaker closes first: it may have recovered by now."""
        if len(self.members) == 1:
            return None
        left = [m for m in self.members if m.up and m not in tried]
        return min(left, key=lambda m: m.breaker.retry_after, default=None)

    def unavailable_error(self) -> ServiceUnavailable:
        """Return the error for a request that no member can take."""
        waits = [m.breaker.retry_after for m in self.members if m.up and m.breaker.retry_after > 0]
        return ServiceUnavailable(
            f"the service {self.route.name!r} is not available",
            retry_after=min(waits, default=RETRY_AFTER_SECONDS),
        )


def choose_member(balance: Balance, usable: Sequence[PoolMember], turn: int) -> PoolMember:
    """Return the member that the balancing policy selects; ``usable`` must not be empty."""
    if balance is Balance.LEAST_CONNECTIONS:
        # Rotate first: otherwise the first member would win every tie when traffic is low.
        order = [*usable[turn % len(usable) :], *usable[: turn % len(usable)]]
        return min(order, key=lambda m: (m.active + 1) / m.upstream.weight)
    if balance is Balance.WEIGHTED:
        return _smooth_weighted(usable)
    return usable[turn % len(usable)]


def _smooth_weighted(usable: Sequence[PoolMember]) -> PoolMember:
    """Select by smooth weighted round robin, which avoids bursts on the heaviest member."""
    for member in usable:
        member.credit += member.upstream.weight
    chosen = max(usable, key=lambda m: m.credit)
    chosen.credit -= sum(m.upstream.weight for m in usable)
    return chosen


def _affinity(value: str, member: PoolMember) -> bytes:
    """Return the member's rendezvous hash: when a member leaves, only its own clients move."""
    return hashlib.blake2b(f"{value}\0{member.upstream.url}".encode(), digest_size=8).digest()


async def run_health_checks(session: aiohttp.ClientSession, pool: Pool) -> None:
    """Check the pool's members periodically until cancelled; return at once without a check."""
    check = pool.route.health
    if check is None:
        return
    while True:
        await asyncio.gather(*(_check_member(session, member, check) for member in pool.members))
        await asyncio.sleep(check.interval)


async def _check_member(
    session: aiohttp.ClientSession, member: PoolMember, check: HealthCheck
) -> None:
    try:
        async with session.get(
            URL(member.upstream.url + check.path, encoded=True),
            timeout=aiohttp.ClientTimeout(total=check.timeout),
            allow_redirects=False,
        ) as response:
            passed = response.status < 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        passed = False
    member.record_check(passed, check)
