"""Simulates past decisions under other prices of a bad answer. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DEFAULT_PRICES", "PriceScenario", "simulate_prices"]

DEFAULT_PRICES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_NANO = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceScenario:
    """Holds what one price would have led to.

    Attributes:
        cost_usd: expected cost of all decisions.
        bad_answers: their expected number.
        models: how often each model would have been chosen.
    """

    usd_per_bad_answer: float
    cost_usd: float
    bad_answers: float
    models: Mapping[str, int]


def simulate_prices(
    decisions: Sequence[Sequence[Sequence[Any]]], prices: Sequence[float] = DEFAULT_PRICES
) -> list[PriceScenario]:
    """Repeat each decision by money and risk for every price.

    Time is left out, because the queues of the past are unknown.

    Args:
        decisions: per decision and candidate: model, expected cost in nano US dollars, probability
            of a good answer, and its lower bound.
    """
    return [_simulate(decisions, price) for price in prices]


def _simulate(decisions: Sequence[Sequence[Sequence[Any]]], price: float) -> PriceScenario:
    nano, bad = 0, 0.0
    models: Counter[str] = Counter()
    for options in decisions:
        if not options:
            continue
        model, cost, p_good, _ = min(
            options, key=lambda option: option[1] / _NANO + (1.0 - option[3]) * price
        )
        nano += cost
        bad += 1.0 - p_good
        models[model] += 1
    return PriceScenario(
        usd_per_bad_answer=price,
        cost_usd=nano / _NANO,
        bad_answers=bad,
        models=dict(models.most_common()),
    )
