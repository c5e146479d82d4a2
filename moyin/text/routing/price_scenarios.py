"""Simulates the routing of past requests with other costs of a bad answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_PRICES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_NANO_PER_USD = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceScenario:
    """Expected outcome of all simulated decisions at one cost of a bad answer.

    Attributes:
        cost_usd: expected cost of all calls.
        bad_answers: expected number of bad answers.
        models: number of requests that each model would have answered.
    """

    usd_per_bad_answer: float
    cost_usd: float
    bad_answers: float
    models: Mapping[str, int]


def simulate_prices(
    decisions: Sequence[Sequence[Sequence[Any]]], prices: Sequence[float] = DEFAULT_PRICES
) -> list[PriceScenario]:
    """Simulate all decisions with each of ``prices`` as the cost of a bad answer.

    Waiting times are ignored, because the load at the time of the decision is unknown.

    Args:
        decisions: one sequence of candidates per decision. A candidate consists of the model, its
            expected cost in nano US dollars, the probability of a good answer and its lower bound.
        prices: costs of a bad answer in US dollars.
    """
    return [_simulate_price(decisions, price) for price in prices]


def _simulate_price(decisions: Sequence[Sequence[Sequence[Any]]], price: float) -> PriceScenario:
    cost_nano, bad_answers = 0, 0.0
    requests_by_model: Counter[str] = Counter()
    for candidates in decisions:
        if not candidates:
            continue
        model, candidate_cost_nano, p_good, _ = min(
            candidates,
            key=lambda candidate: candidate[1] / _NANO_PER_USD + (1.0 - candidate[3]) * price,
        )
        cost_nano += candidate_cost_nano
        bad_answers += 1.0 - p_good
        requests_by_model[model] += 1
    return PriceScenario(
        usd_per_bad_answer=price,
        cost_usd=cost_nano / _NANO_PER_USD,
        bad_answers=bad_answers,
        models=dict(requests_by_model.most_common()),
    )
