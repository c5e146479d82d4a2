"""What tenants teach each other: one number per model and kind, and nothing else.

The number is the median over tenants of how much better the model turned out than the table says.
A median over at least `TENANTS` tenants lies between what the others say, whatever one of them says.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from moyin.text.quality.question import KIND_NUMBER
from moyin.text.quality.state import TenantState

__all__ = ["TENANTS", "Levels", "levels_of", "shared_levels"]

TENANTS = 5  # fewer say too much about each other
_SIGNALS = 20.0  # that a tenant needs about a model and kind to be counted
_MOST = 1.5  # logits

Levels = Mapping[str, Mapping[str, float]]


def levels_of(state: TenantState) -> dict[str, dict[str, float]]:
    """Return what one tenant contributes, in logits by model and kind. A frozen tenant keeps out."""
    if state.frozen:
        return {}
    found = {
        model: {
            kind: round(memory.mean[0] + memory.mean[KIND_NUMBER[kind]], 3)
            for kind, count in memory.counts.items()
            if count >= _SIGNALS and kind in KIND_NUMBER
        }
        for model, memory in state.models.items()
    }
    return {model: kinds for model, kinds in found.items() if kinds}


def shared_levels(contributions: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return logits to add to what the table says, by model and kind.

    Args:
        contributions: of each tenant what `levels_of` returned, perhaps from storage; what is of
            another shape is left out.
    """
    said: dict[tuple[str, str], list[float]] = {}
    for contribution in contributions:
        for model, kinds in contribution.items():
            for kind, level in kinds.items() if isinstance(kinds, Mapping) else ():
                if kind in KIND_NUMBER and isinstance(level, int | float) and math.isfinite(level):
                    said.setdefault((model, kind), []).append(level)
    shared: dict[str, dict[str, float]] = {}
    for (model, kind), levels in said.items():
        if len(levels) >= TENANTS:
            level = max(-_MOST, min(statistics.median(levels), _MOST))
            shared.setdefault(model, {})[kind] = level
    return shared
