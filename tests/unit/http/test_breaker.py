from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moyin.http.breaker import Breaker, BreakerState


class Clock:
    """A clock that shows the time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_open_breaker() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3):
        assert breaker.admit()
        breaker.fail()
    return breaker, clock


def test_three_failures_in_a_row_open_the_breaker() -> None:
    breaker, _ = make_open_breaker()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.admit()
    assert breaker.retry_after == 2.0


def test_success_between_failures_keeps_the_breaker_closed() -> None:
    breaker = Breaker(Clock())
    for _ in range(5):
        breaker.fail()
        breaker.fail()
        breaker.succeed()
    assert breaker.state is BreakerState.CLOSED


def test_successful_probe_closes_the_breaker() -> None:
    breaker, clock = make_open_breaker()
    clock.now += 2.0
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit()
    assert not breaker.admit()
    breaker.succeed()
    assert breaker.state is BreakerState.CLOSED


def test_failed_probe_doubles_cooldown_up_to_a_minute() -> None:
    breaker, clock = make_open_breaker()
    wait_seconds = []
    for _ in range(7):
        wait_seconds.append(breaker.retry_after)
        clock.now += breaker.retry_after
        assert breaker.admit()
        breaker.fail()
    assert wait_seconds == [2, 4, 8, 16, 32, 60, 60]


def test_abandoned_probe_admits_another() -> None:
    breaker, clock = make_open_breaker()
    clock.now += 2.0
    assert breaker.admit()
    breaker.abandon()
    assert breaker.admit()


def test_retry_after_is_honoured_from_the_first_failure() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.fail(retry_after=17)
    assert breaker.retry_after == 17
    clock.now += 16.9
    assert not breaker.ready
    clock.now += 0.1
    assert breaker.ready


def test_failure_at_once_opens_the_breaker_for_the_longest_cooldown() -> None:
    breaker = Breaker(Clock())
    breaker.fail(opens_at_once=True)
    assert breaker.retry_after == 60


def test_late_failure_does_not_shorten_the_cooldown() -> None:
    breaker = Breaker(Clock())
    breaker.fail(retry_after=50)
    breaker.fail(retry_after=1)
    assert breaker.retry_after == 50


@given(
    st.lists(
        st.sampled_from(["admit", "succeed", "fail", "abandon", "tick", "minute"]), max_size=60
    )
)
def test_breaker_becomes_ready_again_with_one_probe_at_a_time(operations: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    is_probing = False
    for operation in operations:
        state = breaker.state
        match operation:
            case "admit":
                was_admitted = breaker.admit()
                assert not (was_admitted and is_probing and state is BreakerState.HALF_OPEN)
                is_probing = (was_admitted and state is BreakerState.HALF_OPEN) or is_probing
            case "tick":
                clock.now += 1
            case "minute":
                clock.now += 60
            case _:
                getattr(breaker, operation)()
                is_probing = False
    breaker.abandon()
    clock.now += 60
    assert breaker.ready
