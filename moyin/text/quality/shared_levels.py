"""Shares what tenants learned: one number per model and kind, and nothing else.

The number is the median over tenants of how much better the model is than the table says. A single
tenant cannot move the median of at least `MIN_TENANTS` tenants beyond the others' values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from moyin.text.quality.question import KIND_NUMBER
from moyin.text.quality.tenant_state import TenantState

__all__ = ["MIN_TENANTS", "Levels", "levels_of", "shared_levels"]

MIN_TENANTS = 5  # fewer would reveal too much about each other
_MIN_SIGNALS = 20.0  # signals that a tenant needs about a model and kind to be counted
_MAX_LEVEL = 1.5  # logits

Levels = Mapping[str, Mapping[str, float]]


def levels_of(state: TenantState) -> dict[str, dict[str, float]]:
    """Return what one tenant contributes, in logits by model and kind; none if it is frozen."""
    if state.frozen:
        return {}
    levels_by_model = {
        model: {
            kind: round(weights.mean[0] + weights.mean[KIND_NUMBER[kind]], 3)
            for kind, count in weights.counts.items()
            if count >= _MIN_SIGNALS and kind in KIND_NUMBER
        }
        for model, weights in state.models.items()
    }
    return {model: kinds for model, kinds in levels_by_model.items() if kinds}


def shared_levels(contributions: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the logits to add to the table's estimates, by model and kind.

    Args:
        contributions: per tenant the result of `levels_of`, possibly from storage; malformed values
            are ignored.
    """
    contributed: dict[tuple[str, str], list[float]] = {}
    for contribution in contributions:
        for model, kinds in contribution.items():
            for kind, level in kinds.items() if isinstance(kinds, Mapping) else ():
                if kind in KIND_NUMBER and isinstance(level, int | float) and math.isfinite(level):
                    contributed.setdefault((model, kind), []).append(level)
    shared: dict[str, dict[str, float]] = {}
    for (model, kind), levels in contributed.items():
        if len(levels) >= MIN_TENANTS:
            level = max(-_MAX_LEVEL, min(statistics.median(levels), _MAX_LEVEL))
            shared.setdefault(model, {})[kind] = level
    return shared
