"""Averages that believe a prior until they have seen enough, and forget."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Average", "Averages"]

_WINDOW = 40
_PRIOR_WEIGHT = 3.0
_LARGEST = 4_096


class Average:
    """A moving average of about the last forty samples.

    Args:
        half_life: seconds after which samples count half; None: they never fade.
    """

    __slots__ = ("_at", "_count", "_half_life", "_mean")

    def __init__(self, half_life: float | None = None) -> None:
        self._half_life = half_life
        self._mean = 0.0
        self._count = 0.0
        self._at = 0.0

    def add(self, sample: float, now: float = 0.0) -> None:
        self._count = min(self._weight(now) + 1, _WINDOW)
        self._mean += (sample - self._mean) / self._count
        self._at = now

    def estimate(self, prior: float, now: float = 0.0) -> float:
        """The average, drawn towards ``prior`` as long as few or only old samples speak."""
        weight = self._weight(now)
        return (weight * self._mean + _PRIOR_WEIGHT * prior) / (weight + _PRIOR_WEIGHT)

    def _weight(self, now: float) -> float:
        if self._half_life is None:
            return self._count
        return self._count * float(0.5 ** (max(now - self._at, 0.0) / self._half_life))


class Averages:
    """One average per key, of which there are ``4096`` at most; the oldest goes first."""

    def __init__(self, half_life: float | None = None) -> None:
        self._half_life = half_life
        self._known: dict[Hashable, Average] = {}

    def add(self, key: Hashable, sample: float, now: float = 0.0) -> None:
        average = self._known.get(key)
        if average is None:
            if len(self._known) >= _LARGEST:
                del self._known[next(iter(self._known))]
            average = self._known[key] = Average(self._half_life)
        average.add(sample, now)

    def estimate(self, key: Hashable, prior: float, now: float = 0.0) -> float:
        average = self._known.get(key)
        return prior if average is None else average.estimate(prior, now)
