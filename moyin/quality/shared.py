"""What tenants teach each other: one number per model and kind, and nothing else.

The number is the median over tenants of how much better the model turned out than the table says.
A median over at least `TENANTS` tenants lies between what the others say, whatever one of them says.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from moyin.quality.question import KIND_NUMBER
from moyin.quality.state import TenantState

__all__ = ["TENANTS", "Levels", "shared_levels"]

TENANTS = 5  # fewer say too much about each other
_SIGNALS = 20.0  # that a tenant needs about a model and kind to be counted
_MOST = 1.5  # logits

Levels = Mapping[str, Mapping[str, float]]


def shared_levels(states: Iterable[TenantState]) -> dict[str, dict[str, float]]:
    """Return logits to add to what the table says, by model and kind.

    Args:
        states: of the tenants that share; leave out those that may not.
    """
    said: dict[str, dict[str, list[float]]] = {}
    for state in states:
        for model, memory in state.models.items():
            for kind, count in memory.counts.items():
                if count >= _SIGNALS and kind in KIND_NUMBER:
                    level = memory.mean[0] + memory.mean[KIND_NUMBER[kind]]
                    said.setdefault(model, {}).setdefault(kind, []).append(level)
    return {
        model: {
            kind: max(-_MOST, min(statistics.median(levels), _MOST))
            for kind, levels in kinds.items()
            if len(levels) >= TENANTS
        }
        for model, kinds in said.items()
    }
