"""How many renderers a pool should have; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Scale"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Between ``minimum`` (zero is allowed) and ``maximum`` renderers.

    Attributes:
        patience: seconds within which those that wait should have begun; a longer queue is worth
            more renderers.
        idle: seconds after which a renderer that nobody needs is removed.
    """

    minimum: int
    maximum: int
    patience: float = 30.0
    idle: float = 300.0

    def needed(self, waiting: int, service: float) -> int:
        """Renderers that ``waiting`` renders of ``service`` seconds each are worth."""
        worth = math.ceil(waiting * service / self.patience)
        return max(self.minimum, min(self.maximum, worth))

    def removable(self, idle_seconds: list[float | None], waiting: int) -> list[int]:
        """Which renderers to remove: places in the list, the last first.

        Args:
            idle_seconds: of each renderer; None: it is at work.
        """
        if waiting:
            return []
        spare = len(idle_seconds) - self.minimum
        resting = [
            place
            for place, seconds in enumerate(idle_seconds)
            if seconds is not None and seconds >= self.idle
        ]
        return resting[::-1][: max(0, spare)]
