"""Decides how many renderers a pool should have. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Scale"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Bounds and speed of a pool's scaling.

    Attributes:
        minimum: number of renderers of an idle pool; may be 0.
        maximum: number of renderers at most.
        patience: seconds within which all waiting renders should begin; a longer queue needs more
            renderers.
        idle: seconds after which an unneeded renderer is removed.
    """

    minimum: int
    maximum: int
    patience: float = 30.0
    idle: float = 300.0

    def needed(self, waiting: int, mean_seconds: float) -> int:
        """Return the number of renderers for ``waiting`` renders of ``mean_seconds`` each."""
        wanted = math.ceil(waiting * mean_seconds / self.patience)
        return max(self.minimum, min(self.maximum, wanted))

    def removable(self, idle_seconds: list[float | None], waiting: int) -> list[int]:
        """Return the positions of the renderers to remove, from the last to the first.

        Args:
            idle_seconds: seconds for which each renderer has been idle; None: it is busy.
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
