"""Computes moving averages that start from a prior estimate; old samples lose weight."""

from __future__ import annotations

from collections.abc import Hashable

_MAX_WEIGHT = 40
_PRIOR_WEIGHT = 3.0
_MAX_KEYS = 4_096


class Average:
    """Moving average of about the last forty samples.

    Args:
        half_life_seconds: seconds after which a sample has half its weight; None if it keeps its
            full weight.
    """

    __slots__ = ("_count", "_half_life", "_last_sample_at", "_mean")

    def __init__(self, half_life_seconds: float | None = None) -> None:
        self._half_life = half_life_seconds
        self._mean = 0.0
        self._count = 0.0
        self._last_sample_at = 0.0

    def add(self, sample: float, now: float = 0.0) -> None:
        """Add a sample that was measured at the time ``now``, in seconds."""
        self._count = min(self._compute_weight(now) + 1, _MAX_WEIGHT)
        self._mean += (sample - self._mean) / self._count
        self._last_sample_at = now

    def estimate(self, prior: float, now: float = 0.0) -> float:
        """Return the average of the samples and of ``prior``, which counts as three samples.

        Args:
            now: the current time in seconds.
        """
        weight = self._compute_weight(now)
        return (weight * self._mean + _PRIOR_WEIGHT * prior) / (weight + _PRIOR_WEIGHT)

    def _compute_weight(self, now: float) -> float:
        if self._half_life is None:
            return self._count
        return self._count * float(0.5 ** (max(now - self._last_sample_at, 0.0) / self._half_life))


class KeyedAverages:
    """One moving average per key; with more than 4,096 keys the oldest key is dropped."""

    def __init__(self, half_life_seconds: float | None = None) -> None:
        self._half_life_seconds = half_life_seconds
        self._averages: dict[Hashable, Average] = {}

    def add(self, key: Hashable, sample: float, now: float = 0.0) -> None:
        """Add a sample to the average of a key.

        Args:
            now: the time of the measurement, in seconds.
        """
        average = self._averages.get(key)
        if average is None:
            if len(self._averages) >= _MAX_KEYS:
                del self._averages[next(iter(self._averages))]
            average = self._averages[key] = Average(self._half_life_seconds)
        average.add(sample, now)

    def estimate(self, key: Hashable, prior: float, now: float = 0.0) -> float:
        """Return the average of a key's samples and of ``prior``; see `Average.estimate`.

        Args:
            now: the current time in seconds.
        """
        average = self._averages.get(key)
        return prior if average is None else average.estimate(prior, now)
