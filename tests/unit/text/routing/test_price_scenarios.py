from __future__ import annotations

import pytest

from moyin.text.routing.price_scenarios import simulate_prices

# Model, nano US dollars, expectation, careful bound.
EASY = [["small", 0, 0.95, 0.9], ["large", 1_000_000, 0.99, 0.98]]
HARD = [["small", 0, 0.2, 0.1], ["large", 2_000_000, 0.9, 0.8]]


def test_higher_price_of_bad_answers_means_fewer_of_them() -> None:
    free_scenario, one_cent_scenario, expensive_scenario = simulate_prices(
        [EASY, HARD], (0.0, 0.01, 1.0)
    )
    assert (free_scenario.cost_usd, free_scenario.models) == (0, {"small": 2})
    assert free_scenario.bad_answers == pytest.approx(0.85)
    assert (one_cent_scenario.cost_usd, one_cent_scenario.models) == (
        0.002,
        {"small": 1, "large": 1},
    )
    assert one_cent_scenario.bad_answers == pytest.approx(0.15)
    assert (expensive_scenario.cost_usd, expensive_scenario.models) == (0.003, {"large": 2})
    assert expensive_scenario.bad_answers == pytest.approx(0.11)


def test_scenarios_without_decisions_are_empty() -> None:
    (empty_scenario,) = simulate_prices([[]], (0.1,))
    assert (empty_scenario.cost_usd, empty_scenario.bad_answers, empty_scenario.models) == (
        0,
        0,
        {},
    )
