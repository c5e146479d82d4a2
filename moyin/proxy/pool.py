"""Chooses the upstream of each request by health checks and the results of earlier requests."""

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
from moyin.proxy.route import BalancingPolicy, HealthCheck, Route, Upstream

# Statuses of a server that is starting or stopping; a running service rarely sends them.
RETRYABLE_STATUSES = frozenset({502, 503, 504})
_log = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 2.0


class PoolMember:
    """Tracks the load and health of one upstream in this gateway replica.

    Attributes:
        active: the number of open requests of this replica.
        breaker: the circuit breaker, which opens after requests have failed.
        is_up: False while the active health checks report that the upstream is down.
        credit: the current weight in smooth weighted round robin.
    """

    def __init__(self, upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        self.upstream = upstream
        self.active = 0
        self.breaker = Breaker(clock)
        self.is_up = True
        self.credit = 0
        self._streak = 0

    @property
    def is_usable(self) -> bool:
        """True if the upstream is healthy and its breaker admits a request."""
        return self.is_up and self.breaker.ready

    def record_health_check(self, has_passed: bool, health_check: HealthCheck) -> None:
        """Record a result of the health check; enough equal results in a row change `is_up`.

        Args:
            has_passed: True if the upstream passed the check.
            health_check: the settings of the check, with the number of results that suffice.
        """
        if has_passed == self.is_up:
            self._streak = 0
            return
        self._streak += 1
        if self._streak < (health_check.rise if has_passed else health_check.fall):
            return
        self.is_up, self._streak = has_passed, 0
        if has_passed:
            # Requests that failed before the recovery must not keep the breaker open.
            self.breaker.succeed()
        _log.warning(
            "health checks report that upstream %s is %s",
            self.upstream.url,
            "up" if has_passed else "down",
        )


class InFlightCount:
    """The number of open requests of one route, kept when the route table is reloaded."""

    def __init__(self) -> None:
        self.count = 0


class UpstreamPool:
    """Balances the requests of one route over its upstreams.

    Args:
        in_flight: the count of open requests, which the next pool takes over on a reload.
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
        cls,
        route: Route,
        previous_members: Mapping[str, PoolMember],
        in_flight: InFlightCount | None = None,
    ) -> UpstreamPool:
        """Build the pool of a route.

        Args:
            previous_members: members of the route's previous pool by URL, which keep their health and
                load.
            in_flight: the route's count of open requests, which a reload keeps.
        """
        members = []
        for upstream in route.upstreams:
            member = previous_members.get(upstream.url) or PoolMember(upstream)
            member.upstream = upstream
            if route.health is None:
                # Without health checks nothing would set this to True again.
                member.is_up = True
            members.append(member)
        return cls(route, members, in_flight)

    @property
    def open_requests(self) -> int:
        """The number of this route's requests that are open in this replica."""
        return self._in_flight.count

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as open during the ``with`` block.

        Raises:
            Overloaded: the route's ``concurrent`` limit is reached.
        """
        limit = self.route.max_concurrent
        if limit is not None and self._in_flight.count >= limit:
            message = f"the service {self.route.name!r} is at its limit of {limit} open requests; try again"
            raise Overloaded(message, retry_after=1)
        self._in_flight.count += 1
        try:
            yield
        finally:
            self._in_flight.count -= 1

    def pick_member(
        self, sticky_value: str | None, tried_members: Collection[PoolMember]
    ) -> PoolMember | None:
        """Return the member that the request is sent to next.

        If no untried member is usable, return the untried member that is likely to recover first,
        or None if there is none.

        Args:
            sticky_value: the header value that ties the client to one upstream, if any.
            tried_members: the members that have already failed for this request.
        """
        usable_members = [m for m in self.members if m.is_usable and m not in tried_members]
        if not usable_members:
            return self._find_first_to_recover(tried_members)
        if sticky_value is not None:
            member = max(usable_members, key=lambda m: _compute_rendezvous_hash(sticky_value, m))
        else:
            member = choose_member(self.route.balance, usable_members, self._turn)
            self._turn += 1
        member.breaker.admit()
        return member

    def can_retry(self, tried_members: Collection[PoolMember]) -> bool:
        """Return True if a usable member is untried and the request has not used up its retries.

        Args:
            tried_members: the members that have already failed for this request.
        """
        if len(tried_members) > self.route.retries:
            return False
        return any(m.is_usable and m not in tried_members for m in self.members)

    def _find_first_to_recover(self, tried_members: Collection[PoolMember]) -> PoolMember | None:
        """Return the untried member whose breaker would admit a request soonest.

        The member may have recovered before that time. Returns None if the pool has only one
        member, or if the health checks report that all untried members are down.
        """
        if len(self.members) == 1:
            return None
        untried_members = [m for m in self.members if m.is_up and m not in tried_members]
        return min(untried_members, key=lambda m: m.breaker.retry_after, default=None)

    def new_unavailable_error(self) -> ServiceUnavailable:
        """Create the error for a request that no member can serve, with the time to wait."""
        wait_seconds = [
            m.breaker.retry_after for m in self.members if m.is_up and m.breaker.retry_after > 0
        ]
        return ServiceUnavailable(
            f"the service {self.route.name!r} has no healthy upstream; try again",
            retry_after=min(wait_seconds, default=RETRY_AFTER_SECONDS),
        )


def choose_member(
    policy: BalancingPolicy, usable_members: Sequence[PoolMember], turn: int
) -> PoolMember:
    """Return the member that the policy selects; ``turn`` counts the route's requests."""
    if policy is BalancingPolicy.LEAST_CONNECTIONS:
        # Rotate first. Otherwise, the first member would get every request when traffic is low.
        rotated_members = [
            *usable_members[turn % len(usable_members) :],
            *usable_members[: turn % len(usable_members)],
        ]
        return min(rotated_members, key=lambda m: (m.active + 1) / m.upstream.weight)
    if policy is BalancingPolicy.WEIGHTED:
        return _choose_smooth_weighted(usable_members)
    return usable_members[turn % len(usable_members)]


def _choose_smooth_weighted(usable_members: Sequence[PoolMember]) -> PoolMember:
    """Choose by smooth weighted round robin, which avoids bursts on the heaviest member."""
    for member in usable_members:
        member.credit += member.upstream.weight
    chosen_member = max(usable_members, key=lambda m: m.credit)
    chosen_member.credit -= sum(m.upstream.weight for m in usable_members)
    return chosen_member


def _compute_rendezvous_hash(sticky_value: str, member: PoolMember) -> bytes:
    """Hash a client's sticky header value together with a member's URL (rendezvous hashing).

    The client is served by the member with the highest hash, so that the loss of a member moves
    only that member's clients.
    """
    return hashlib.blake2b(
        f"{sticky_value}\0{member.upstream.url}".encode(), digest_size=8
    ).digest()


async def run_health_checks(session: aiohttp.ClientSession, pool: UpstreamPool) -> None:
    """Check the pool's members periodically until cancelled, if the route configures a check."""
    health_check = pool.route.health
    if health_check is None:
        return
    while True:
        await asyncio.gather(
            *(_check_member(session, member, health_check) for member in pool.members)
        )
        await asyncio.sleep(health_check.interval)


async def _check_member(
    session: aiohttp.ClientSession, member: PoolMember, health_check: HealthCheck
) -> None:
    try:
        async with session.get(
            URL(member.upstream.url + health_check.path, encoded=True),
            timeout=aiohttp.ClientTimeout(total=health_check.timeout),
            allow_redirects=False,
        ) as response:
            has_passed = response.status < 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        has_passed = False
    member.record_health_check(has_passed, health_check)
