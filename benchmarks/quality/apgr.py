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


def compute_recovered(expected_gains: Sequence[float], truths: Sequence[float]) -> list[float]:
    """Return the recovered part of the quality gap for each share of prompts (0, 10, … 100 %).

    Args:
        expected_gains: expected gain of quality by prompt.
        truths: actual gain of quality by prompt.
    """
    ranked_rows = sorted(range(len(expected_gains)), key=lambda number: -expected_gains[number])
    cumulative_sums = [0.0, *accumulate(truths[number] for number in ranked_rows)]
    row_counts = [round(share * len(ranked_rows) / _SHARES) for share in range(_SHARES + 1)]
    return [cumulative_sums[row_count] / cumulative_sums[-1] for row_count in row_counts]


def compute_apgr(expected_gains: Sequence[float], truths: Sequence[float]) -> float:
    """Return the average performance gap recovered: the mean of `compute_recovered` over all shares."""
    curve = compute_recovered(expected_gains, truths)
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / _SHARES
