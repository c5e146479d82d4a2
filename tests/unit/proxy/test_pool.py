from __future__ import annotations

from collections import Counter

import pytest

from moyin.errors import Overloaded
from moyin.proxy.pool import Member, Pool, UnderWay, choose
from moyin.proxy.route import Balance, HealthCheck, Route, Upstream


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool(clock: Clock, *weights: int, **more: object) -> Pool:
    members = [
        Member(Upstream(url=f"http://{i}", weight=weight), clock)
        for i, weight in enumerate(weights)
    ]
    upstreams = tuple(member.upstream for member in members)
    return Pool(Route(name="r", upstreams=upstreams, **more), members)  # type: ignore[arg-type]


def urls(pool: Pool, times: int, sticky: str | None = None) -> list[str]:
    picked = [pool.pick(sticky, ()) for _ in range(times)]
    return [member.upstream.url[-1] for member in picked if member is not None]


def test_round_robin_takes_turns(clock: Clock) -> None:
    assert urls(pool(clock, 1, 1, 1), 6) == list("012012")


def test_weights_are_kept_and_spread(clock: Clock) -> None:
    order = urls(pool(clock, 5, 1, 1, balance=Balance.WEIGHTED), 7)
    assert Counter(order) == {"0": 5, "1": 1, "2": 1}
    assert "000" not in "".join(order + order)[1:6]


def test_least_connections_looks_at_what_is_under_way(clock: Clock) -> None:
    first = pool(clock, 1, 1, 2)
    for member, active in zip(first.members, (1, 0, 2), strict=True):
        member.active = active
    assert choose(Balance.LEAST_CONNECTIONS, first.members, 0) is first.members[1]
    first.members[1].active = 5
    assert choose(Balance.LEAST_CONNECTIONS, first.members, 0) is first.members[2]


def test_a_value_stays_with_its_member_and_moves_when_it_goes(clock: Clock) -> None:
    three = pool(clock, 1, 1, 1)
    homes = {value: urls(three, 3, value) for value in map(str, range(50))}
    assert all(len(set(found)) == 1 for found in homes.values())
    three.members[0].up = False
    moved = {value: urls(three, 1, value)[0] for value in homes}
    assert all(moved[v] == homes[v][0] for v in homes if homes[v][0] != "0")
    assert "0" not in moved.values()


def test_who_fails_is_not_asked_until_its_time(clock: Clock) -> None:
    two = pool(clock, 1, 1)
    for _ in range(3):
        two.members[0].breaker.fail()
    assert urls(two, 4) == list("1111")
    clock.now = 2.0
    assert "0" in urls(two, 2)


def test_several_are_never_given_up_but_one_alone_is(clock: Clock) -> None:
    one, two = pool(clock, 1), pool(clock, 1, 1)
    for member in (*one.members, *two.members):
        for _ in range(3):
            member.breaker.fail()
    assert one.pick(None, ()) is None
    assert one.nobody().retry_after == 2.0
    assert two.pick(None, ()) is two.members[0]
    assert two.pick(None, two.members) is None


def test_checks_need_several_answers_in_a_row() -> None:
    check = HealthCheck(path="/", rise=2, fall=3)
    member = Member(Upstream(url="http://0"))
    for passed in (False, False, True, False, False):
        member.checked(passed, check)
    assert member.up
    member.checked(False, check)
    assert not member.up
    member.checked(True, check)
    member.checked(False, check)
    member.checked(True, check)
    assert not member.up
    member.checked(True, check)
    assert member.up


def test_a_new_table_keeps_what_is_known_of_an_upstream(clock: Clock) -> None:
    before = pool(clock, 1, 1)
    before.members[0].active = 3
    known = {member.upstream.url: member for member in before.members}
    upstreams = (Upstream(url="http://0", weight=7), Upstream(url="http://9"))
    after = Pool.build(Route(name="r", upstreams=upstreams), known)
    assert (after.members[0].active, after.members[0].upstream.weight) == (3, 7)
    assert after.members[1].active == 0


def test_a_full_route_refuses(clock: Clock) -> None:
    full = pool(clock, 1, concurrent=1)
    with full.entered(), pytest.raises(Overloaded), full.entered():
        pass
    with full.entered():
        pass


def test_a_new_table_s_limit_counts_what_is_under_way() -> None:
    upstreams, under_way = (Upstream(url="http://0"),), UnderWay()

    def table(concurrent: int) -> Pool:
        route = Route(name="r", upstreams=upstreams, concurrent=concurrent)
        return Pool.build(route, {}, under_way)

    with table(1).entered():
        with pytest.raises(Overloaded), table(1).entered():
            pass
        with table(2).entered(), pytest.raises(Overloaded), table(2).entered():
            pass
    with table(1).entered():
        pass
