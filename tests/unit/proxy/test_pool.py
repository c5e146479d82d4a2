from __future__ import annotations

from collections import Counter

import pytest

from moyin.errors import Overloaded
from moyin.proxy.pool import InFlightCount, PoolMember, UpstreamPool, choose_member
from moyin.proxy.route import BalancingPolicy, HealthCheck, Route, Upstream


class Clock:
    """A clock that shows the time that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_pool(clock: Clock, *weights: int, **kwargs: object) -> UpstreamPool:
    members = [
        PoolMember(Upstream(url=f"http://{i}", weight=weight), clock)
        for i, weight in enumerate(weights)
    ]
    upstreams = tuple(member.upstream for member in members)
    return UpstreamPool(Route(name="r", upstreams=upstreams, **kwargs), members)  # type: ignore[arg-type]


def pick_hosts(pool: UpstreamPool, times: int, sticky_value: str | None = None) -> list[str]:
    picked_members = [pool.pick_member(sticky_value, ()) for _ in range(times)]
    return [member.upstream.url[-1] for member in picked_members if member is not None]


def test_round_robin_takes_turns(clock: Clock) -> None:
    assert pick_hosts(make_pool(clock, 1, 1, 1), 6) == list("012012")


def test_weighted_balancing_is_proportional_and_smooth(clock: Clock) -> None:
    picked_hosts = pick_hosts(make_pool(clock, 5, 1, 1, balance=BalancingPolicy.WEIGHTED), 7)
    assert Counter(picked_hosts) == {"0": 5, "1": 1, "2": 1}
    assert "000" not in "".join(picked_hosts + picked_hosts)[1:6]


def test_least_connections_counts_open_requests(clock: Clock) -> None:
    upstream_pool = make_pool(clock, 1, 1, 2)
    for member, open_requests in zip(upstream_pool.members, (1, 0, 2), strict=True):
        member.active = open_requests
    assert (
        choose_member(BalancingPolicy.LEAST_CONNECTIONS, upstream_pool.members, 0)
        is upstream_pool.members[1]
    )
    upstream_pool.members[1].active = 5
    assert (
        choose_member(BalancingPolicy.LEAST_CONNECTIONS, upstream_pool.members, 0)
        is upstream_pool.members[2]
    )


def test_sticky_values_move_only_when_their_member_is_down(clock: Clock) -> None:
    pool_of_three = make_pool(clock, 1, 1, 1)
    hosts_before = {value: pick_hosts(pool_of_three, 3, value) for value in map(str, range(50))}
    assert all(len(set(hosts)) == 1 for hosts in hosts_before.values())
    pool_of_three.members[0].is_up = False
    hosts_after = {value: pick_hosts(pool_of_three, 1, value)[0] for value in hosts_before}
    assert all(
        hosts_after[v] == hosts_before[v][0] for v in hosts_before if hosts_before[v][0] != "0"
    )
    assert "0" not in hosts_after.values()


def test_a_failing_member_is_skipped_until_its_breaker_closes(clock: Clock) -> None:
    pool_of_two = make_pool(clock, 1, 1)
    for _ in range(3):
        pool_of_two.members[0].breaker.fail()
    assert pick_hosts(pool_of_two, 4) == list("1111")
    clock.now = 2.0
    assert "0" in pick_hosts(pool_of_two, 2)


def test_when_all_members_fail_the_next_one_is_tried_unless_there_is_only_one(
    clock: Clock,
) -> None:
    pool_of_one, pool_of_two = make_pool(clock, 1), make_pool(clock, 1, 1)
    for member in (*pool_of_one.members, *pool_of_two.members):
        for _ in range(3):
            member.breaker.fail()
    assert pool_of_one.pick_member(None, ()) is None
    assert pool_of_one.new_unavailable_error().retry_after == 2.0
    assert pool_of_two.pick_member(None, ()) is pool_of_two.members[0]
    assert pool_of_two.pick_member(None, pool_of_two.members) is None


def test_health_changes_only_after_several_checks_in_a_row() -> None:
    health_check = HealthCheck(path="/", rise=2, fall=3)
    member = PoolMember(Upstream(url="http://0"))
    for has_passed in (False, False, True, False, False):
        member.record_health_check(has_passed, health_check)
    assert member.is_up
    member.record_health_check(False, health_check)
    assert not member.is_up
    member.record_health_check(True, health_check)
    member.record_health_check(False, health_check)
    member.record_health_check(True, health_check)
    assert not member.is_up
    member.record_health_check(True, health_check)
    assert member.is_up


def test_a_new_route_table_keeps_the_state_of_known_upstreams(clock: Clock) -> None:
    old_pool = make_pool(clock, 1, 1)
    old_pool.members[0].active = 3
    known_members = {member.upstream.url: member for member in old_pool.members}
    upstreams = (Upstream(url="http://0", weight=7), Upstream(url="http://9"))
    new_pool = UpstreamPool.build(Route(name="r", upstreams=upstreams), known_members)
    assert (new_pool.members[0].active, new_pool.members[0].upstream.weight) == (3, 7)
    assert new_pool.members[1].active == 0


def test_a_route_at_its_concurrency_limit_rejects_requests(clock: Clock) -> None:
    full_pool = make_pool(clock, 1, max_concurrent=1)
    with full_pool.admit(), pytest.raises(Overloaded), full_pool.admit():
        pass
    with full_pool.admit():
        pass


def test_limit_of_a_new_route_table_counts_requests_in_flight() -> None:
    upstreams, in_flight = (Upstream(url="http://0"),), InFlightCount()

    def build_pool(concurrent: int) -> UpstreamPool:
        route = Route(name="r", upstreams=upstreams, max_concurrent=concurrent)
        return UpstreamPool.build(route, {}, in_flight)

    with build_pool(1).admit():
        with pytest.raises(Overloaded), build_pool(1).admit():
            pass
        with build_pool(2).admit(), pytest.raises(Overloaded), build_pool(2).admit():
            pass
    with build_pool(1).admit():
        pass
