"""What past decisions would have cost and risked under other prices of a bad answer. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PRICES", "Outcome", "outcomes"]

PRICES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_NANO = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a price would have led to.

    Attributes:
        cost_usd: expected, of all decisions together.
        bad_answers: expected number of them.
        models: how often each would have been chosen.
    """

    usd_per_bad_answer: float
    cost_usd: float
    bad_answers: float
    models: Mapping[str, int]


def outcomes(
    decisions: Sequence[Sequence[Sequence[Any]]], prices: Sequence[float] = PRICES
) -> list[Outcome]:
    """Choose anew for each decision by money and risk; time is left out, since queues of the past are
    not known any more.

    Args:
        decisions: of each, per candidate: model, expected cost in nano US dollars, expectation that
            the answer is good, and its careful bound.
    """
    return [_outcome(decisions, price) for price in prices]


def _outcome(decisions: Sequence[Sequence[Sequence[Any]]], price: float) -> Outcome:
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
    return Outcome(
        usd_per_bad_answer=price,
        cost_usd=nano / _NANO,
        bad_answers=bad,
        models=dict(models.most_common()),
    )
