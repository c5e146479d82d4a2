"""Tests that the router learns from a fair sample of the requests when there are too many."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from moyin.text.routing.fair_sampling import FairSampler

RATE = 100


class Traffic:
    """Generates evenly spaced requests at given rates per tenant."""

    def __init__(self) -> None:
        self.now = 50.0
        self.share = FairSampler(RATE, clock=lambda: self.now, draw_random=random.Random(7).random)
        self.accepted: list[tuple[float, str]] = []

    def run(self, seconds: int, **rates: int) -> Counter[str]:
        """Send requests for some seconds, and return the number of accepted ones by tenant.

        Args:
            rates: the requests per second of each tenant.
        """
        accepted_before, started_at = len(self.accepted), self.now
        arrivals = [
            (started_at + (number + 0.5) / rate, owner)
            for owner, rate in rates.items()
            for number in range(seconds * rate)
        ]
        for at, owner in sorted(arrivals):
            self.now = at
            if self.share.accept(owner):
                self.accepted.append((at, owner))
        self.now = started_at + seconds
        return Counter(owner for _, owner in self.accepted[accepted_before:])


@pytest.mark.parametrize("rates", [{"ada": 99}, {"ada": 60, "bob": 39}])
def test_all_requests_are_accepted_below_the_rate(rates: dict[str, int]) -> None:
    traffic = Traffic()
    accepted_counts = traffic.run(20, **rates)
    assert accepted_counts == {owner: 20 * rate for owner, rate in rates.items()}
    assert (traffic.share.accepted, traffic.share.skipped) == (20 * 99, 0)


def test_a_flood_is_sampled_at_the_rate_and_counted() -> None:
    traffic = Traffic()
    traffic.run(5, ada=2_000)
    accepted_count = traffic.run(20, ada=2_000)["ada"]
    assert 0.9 * 20 * RATE < accepted_count <= 20 * RATE + 1
    assert traffic.share.accepted + traffic.share.skipped == 25 * 2_000


def test_sampling_prefers_no_part_of_a_second() -> None:
    traffic = Traffic()
    traffic.run(5, ada=2_000)
    traffic.run(40, ada=2_000)
    counts_by_tenth = Counter(int(at * 10) % 10 for at, _ in traffic.accepted if at > 55)
    assert min(counts_by_tenth.values()) > 0.75 * max(counts_by_tenth.values())


def test_quiet_tenant_is_accepted_in_full_beside_a_flood() -> None:
    traffic = Traffic()
    for is_first_run in (True, False):
        accepted_counts = traffic.run(10, flood=3_000, small=20, tiny=1)
        assert (accepted_counts["small"], accepted_counts["tiny"]) == (200, 10), is_first_run
        assert accepted_counts["flood"] > 0.6 * 10 * (RATE - 21)


def test_two_floods_share_the_capacity() -> None:
    traffic = Traffic()
    traffic.run(5, ada=3_000, bob=500)
    accepted_counts = traffic.run(20, ada=3_000, bob=500)
    assert accepted_counts["ada"] == pytest.approx(accepted_counts["bob"], rel=0.15)
    assert sum(accepted_counts.values()) <= 20 * RATE + 1


def test_bursty_flood_leaves_capacity_to_others() -> None:
    traffic = Traffic()
    for _ in range(5):
        accepted_counts = traffic.run(1, flood=3_000, small=20)
        assert accepted_counts["small"] == 20
        assert traffic.run(1, small=20)["small"] == 20


def test_all_requests_are_accepted_again_after_a_flood() -> None:
    traffic = Traffic()
    traffic.run(3, ada=3_000)
    traffic.run(6, ada=50)
    assert traffic.run(5, ada=50)["ada"] == 250


def test_tenants_of_past_seconds_are_forgotten() -> None:
    traffic = Traffic()
    traffic.run(1, **{f"tenant-{number}": 3 for number in range(50)})
    traffic.run(4, ada=1)
    assert set(traffic.share._earlier_counts) <= {"ada"}
