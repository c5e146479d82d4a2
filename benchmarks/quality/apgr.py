"""Computes the average performance gap recovered (APGR), as in the RouteLLM paper.

The router sends the first 0, 10, … 100 % of the prompts to the expensive model, in the order of the
quality that it expects to gain. Each share of prompts recovers a part of the quality gap between
the cheap and the expensive model. APGR is the mean of these parts by the trapezoid rule; a random
order has 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_SHARES = 10


def recovered(gains: Sequence[float], truths: Sequence[float]) -> list[float]:
    """Return which part of the quality gap is recovered if 0, 10, … 100 % use the expensive model.

    Args:
        gains: expected gain of quality by prompt.
        truths: actual gain of quality by prompt.
    """
    order = sorted(range(len(gains)), key=lambda number: -gains[number])
    sums = [0.0, *accumulate(truths[number] for number in order)]
    points = [round(share * len(order) / _SHARES) for share in range(_SHARES + 1)]
    return [sums[point] / sums[-1] for point in points]


def apgr(gains: Sequence[float], truths: Sequence[float]) -> float:
    """Return the average performance gap recovered: the mean of `recovered` over all shares."""
    curve = recovered(gains, truths)
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / _SHARES
