"""Estimates how long renders will take, from the renders of the same shape that a pool measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from moyin.domain.queue_place import Duration
from moyin.system.bounded import BoundedDict

_MAX_SHAPES = 1024
_SAMPLES_PER_SHAPE = 32
_SAMPLES_OF_POOL = 256
# One measurement more is assumed, with this error relative to the mean: few measurements say little.
_PRIOR_ERROR = 0.5
# A render that takes longer than all measured ones is assumed to take this share of its time more.
_OVERTIME = 0.25


class RenderDurations:
    """Holds the latest durations of a pool's renders, by the shape of their graphs.

    Renders for which models were loaded are held apart. In all methods, ``load_seconds`` is the
    scheduler's own estimate of the time to load models, 0 if the renderer has them loaded.
    """

    def __init__(self) -> None:
        self._warm: BoundedDict[str, deque[float]] = BoundedDict(_MAX_SHAPES)
        self._cold: BoundedDict[str, deque[float]] = BoundedDict(_MAX_SHAPES)
        self._all: deque[float] = deque(maxlen=_SAMPLES_OF_POOL)
        # Measured times to load models, divided by the estimated ones.
        self._load_ratios: deque[float] = deque(maxlen=_SAMPLES_PER_SHAPE)

    def record(self, shape: str, seconds: float, load_seconds: float = 0.0) -> None:
        """Add a measured render, whose ``seconds`` include loading models."""
        warm = self._warm.get(shape)
        if load_seconds > 0 and warm:
            measured = max(0.0, seconds - sum(warm) / len(warm))
            self._load_ratios.append(measured / load_seconds)
        samples = self._cold if load_seconds > 0 else self._warm
        # Set again, so that the shapes that were not rendered for the longest time are dropped.
        samples[shape] = samples.get(shape) or deque(maxlen=_SAMPLES_PER_SHAPE)
        samples[shape].append(seconds)
        self._all.append(seconds)

    def estimate(self, shape: str, load_seconds: float = 0.0) -> Duration | None:
        """Return how long a render takes; None if its shape has not been measured."""
        return _summarise(self._list_samples(shape, load_seconds))

    def estimate_remaining(
        self, shape: str | None, elapsed: float, load_seconds: float = 0.0
    ) -> Duration | None:
        """Return how much longer a render takes that has taken ``elapsed`` seconds."""
        samples = self._list_samples(shape, load_seconds)
        if not samples:
            return None
        return _summarise([s - elapsed for s in samples if s > elapsed] or [elapsed * _OVERTIME])

    def estimate_any(self, elapsed: float = 0.0) -> Duration | None:
        """Return how much longer a render of unknown shape takes; None before the first render."""
        return self.estimate_remaining(None, elapsed)

    def _list_samples(self, shape: str | None, load_seconds: float) -> list[float]:
        if shape is None:
            return list(self._all)
        warm, cold = self._warm.get(shape, ()), self._cold.get(shape, ())
        if load_seconds > 0 and not cold:
            ratios = self._load_ratios or (1.0,)
            load = load_seconds * sum(ratios) / len(ratios)
            return [seconds + load for seconds in warm]
        return list(cold if load_seconds > 0 else warm or cold)


def _summarise(samples: Iterable[float]) -> Duration | None:
    values = list(samples)
    if not values:
        return None
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values) + (_PRIOR_ERROR * mean) ** 2
    return Duration(mean=mean, variance=squares / len(values))
