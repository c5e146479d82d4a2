"""Tests the scheduling policy on a small simulated farm (see `benchmarks.scheduling`)."""

from __future__ import annotations

import pytest

from benchmarks.scheduling import (
    Farm,
    Load,
    Outcome,
    compute_own_share_waits,
    find_fewest_changes,
    generate_load,
    simulate,
    simulate_fifo,
)
from moyin.render.scheduling.rules import OrderingRules

FARM = Farm(actors=20, window=200, rules=OrderingRules(ageing_seconds=60, bytes_per_second=2e9))


@pytest.fixture(scope="module")
def load() -> Load:
    return generate_load(renders=1_500, checkpoints=5, owners=10)


@pytest.fixture(scope="module")
def outcome(load: Load) -> Outcome:
    return simulate(load, FARM)


def test_every_render_is_executed_once(load: Load, outcome: Outcome) -> None:
    assert sum(map(len, outcome.waits.values())) == len(load.renders)


def test_model_changes_stay_near_the_minimum(load: Load, outcome: Outcome) -> None:
    minimum_changes, lower_bound = find_fewest_changes(load, FARM.actors, outcome.makespan)
    assert lower_bound <= minimum_changes <= outcome.changes
    assert outcome.changes <= 2 * minimum_changes, "changing takes no longer than a render here"
    first_in_first_out = simulate_fifo(load, FARM)
    assert outcome.changes <= 0.25 * first_in_first_out.changes
    assert outcome.makespan < first_in_first_out.makespan


def test_owner_waits_at_most_twice_as_long_as_with_a_farm_share_alone(
    load: Load, outcome: Outcome
) -> None:
    for owner, share in compute_own_share_waits(load, FARM).items():
        assert outcome.p95(owner) <= 2 * share, owner


def test_render_waits_little_longer_than_until_it_is_due(outcome: Outcome) -> None:
    for priority, waited_seconds in outcome.windowed:
        assert waited_seconds <= priority * FARM.rules.ageing_seconds + 60
