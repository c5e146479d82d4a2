"""Remembers what the last renders of a pool used, to estimate what further ones will cost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from moyin.domain.render_run import RenderEstimate, RenderPrice, RenderTariff
from moyin.system.bounded import BoundedDict

_MAX_SHAPES = 512
_RUNS_PER_SHAPE = 32
_RUNS = 256
# Of ten renders about one takes longer than its estimate.
_QUANTILE = 0.9


class RunTimes:
    """Keeps the times and pictures of the last successful runs by the shapes of their graphs.

    Args:
        default_seconds: the estimate while no run is known.
        recent: the seconds of earlier runs, whose shapes are unknown, the oldest first.
    """

    def __init__(self, default_seconds: float, recent: Iterable[float] = ()) -> None:
        self._default_seconds = default_seconds
        self._seconds = deque[float](recent, maxlen=_RUNS)
        self._shapes: BoundedDict[str, deque[RenderEstimate]] = BoundedDict(_MAX_SHAPES)

    def record(self, shape: str, seconds: float, pictures: int) -> None:
        """Add a successful run."""
        self._seconds.append(seconds)
        runs = self._shapes.pop(shape, None) or deque(maxlen=_RUNS_PER_SHAPE)
        runs.append(RenderEstimate(seconds=seconds, pictures=pictures))
        self._shapes[shape] = runs

    def build_tariff(self, price: RenderPrice | None) -> RenderTariff:
        """Return the price with the present estimates."""
        return RenderTariff(
            price=price,
            seconds=_choose(list(self._seconds)) if self._seconds else self._default_seconds,
            shapes={
                shape: RenderEstimate(
                    seconds=_choose([run.seconds for run in runs]),
                    pictures=max(run.pictures for run in runs),
                )
                for shape, runs in self._shapes.items()
            },
        )


def _choose(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(_QUANTILE * len(seconds)) - 1]
