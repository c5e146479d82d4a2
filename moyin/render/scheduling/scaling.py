"""Calculates how many renderers a pool should have."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ScalingPolicy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPolicy:
    """Defines when a pool adds and removes renderers.

    Attributes:
        minimum: smallest number of renderers, which an idle pool has; may be 0.
        maximum: largest number of renderers.
        patience: seconds within which all waiting renders should begin.
        idle: seconds after which an idle renderer is removed.
    """

    minimum: int
    maximum: int
    patience: float = 30.0
    idle: float = 300.0

    def count_needed(self, waiting: int, mean_seconds: float) -> int:
        """Return how many renderers begin ``waiting`` renders of ``mean_seconds`` each in time."""
        wanted = math.ceil(waiting * mean_seconds / self.patience)
        return max(self.minimum, min(self.maximum, wanted))

    def select_removable(self, idle_seconds: list[float | None], waiting: int) -> list[int]:
        """Return the indexes in ``idle_seconds`` of the renderers to remove, in descending order.

        Args:
            idle_seconds: seconds for which each renderer has been idle, or None if it is busy.
            waiting: number of waiting renders; no renderer is removed while there are any.
        """
        if waiting:
            return []
        spare = len(idle_seconds) - self.minimum
        idle = [
            position
            for position, seconds in enumerate(idle_seconds)
            if seconds is not None and seconds >= self.idle
        ]
        return idle[::-1][: max(0, spare)]
