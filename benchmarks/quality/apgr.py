"""APGR: how much of the gap between a cheap and a dear model a router's order of prompts recovers.

The prompts are ordered by how much the router expects the dear model to gain. The dear model answers
the first 0, 10, … 100 % of them. The share of the quality gap that this recovers, averaged over the
shares by the trapezoid rule, is the average performance gap recovered of the RouteLLM paper. An order
by chance has 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

__all__ = ["apgr", "recovered"]

_SHARES = 10


def recovered(gains: Sequence[float], truths: Sequence[float]) -> list[float]:
    """Return the share of the gap that is recovered when 0, 10, … 100 % go to the dear model.

    Args:
        gains: what the router expects, by prompt.
        truths: how much better the dear model's answer was.
    """
    order = sorted(range(len(gains)), key=lambda number: -gains[number])
    sums = [0.0, *accumulate(truths[number] for number in order)]
    points = [round(share * len(order) / _SHARES) for share in range(_SHARES + 1)]
    return [sums[point] / sums[-1] for point in points]


def apgr(gains: Sequence[float], truths: Sequence[float]) -> float:
    """Return the mean of `recovered` over all shares."""
    curve = recovered(gains, truths)
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / _SHARES
