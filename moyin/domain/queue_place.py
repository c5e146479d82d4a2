"""Defines the place of a render in its pool's queue, with its probable start and end."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The quantile of the standard normal distribution at 0.9.
_Z90 = 1.2816


@dataclass(frozen=True, kw_only=True, slots=True)
class Duration:
    """An uncertain duration in seconds, with a normal distribution."""

    mean: float
    variance: float = 0.0

    def __add__(self, other: Duration) -> Duration:
        return Duration(mean=self.mean + other.mean, variance=self.variance + other.variance)

    @classmethod
    def from_p90(cls, mean: float, p90: float) -> Duration:
        """Return the duration with this mean that is longer than ``p90`` in a tenth of all cases."""
        return cls(mean=mean, variance=((p90 - mean) / _Z90) ** 2)

    @property
    def p50(self) -> float:
        """The median of the duration in seconds."""
        return max(0.0, self.mean)

    @property
    def p90(self) -> float:
        """The number of seconds that the duration exceeds in a tenth of all cases."""
        return max(0.0, self.mean + _Z90 * math.sqrt(self.variance))


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePlace:
    """The place of a job's first waiting or running render in the queue of its pool.

    Attributes:
        position: 1 if the render is the next to begin; None if a renderer has been chosen.
        starts_in: the time until the render begins; None if it is unknown, or a renderer has been
            chosen.
        ends_in: the time until the render has been executed; None if it is unknown.
    """

    position: int | None = None
    starts_in: Duration | None = None
    ends_in: Duration | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """The renders that wait in Temporal because the pool's window is full.

    Attributes:
        count: the number of renders that wait.
        oldest_wait: the seconds for which the oldest render has waited; None if none waits.
    """

    count: int = 0
    oldest_wait: float | None = None
