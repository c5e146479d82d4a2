"""Estimates the time and the cost of a pool's renders from its latest successful renders."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from moyin.domain.queue_place import Duration
from moyin.domain.render_run import MeasuredRender, RenderEstimate, RenderPrice, RenderTariff
from moyin.system.bounded import BoundedDict

_MAX_SHAPES = 1024
_RENDERS_PER_SHAPE = 32
_RENDERS_OF_POOL = 256
# A render counts as loading models if that took more than this share of its time. Changing a LoRA's
# strength takes less.
_LOADING_SHARE = 0.1
# Estimates of costs are this quantile: about one render in ten costs more than its estimate.
_QUANTILE = 0.9
# One more measurement with this error, relative to the mean, is assumed, because few measurements
# prove little.
_PRIOR_ERROR = 0.5
# A render that takes longer than all measured ones is assumed to take this share of its elapsed
# time longer.
_OVERTIME = 0.25


class RenderMeasurements:
    """Holds the latest successful renders of a pool, grouped by shape.

    A shape is a digest of the parts of a graph that determine the duration (`compute_shape`).

    Loading models takes time. So the duration of a render that loads models is estimated from
    renders that loaded models, and the duration of any other render from renders that loaded none.
    Costs are estimated from all renders of a shape. In the methods, ``load_seconds`` is the
    scheduler's estimate of the seconds that the render needs to load models, or 0 if the renderer
    has the models loaded.

    Args:
        earlier_renders: successful renders from before the pool's start, the oldest first.
    """

    def __init__(self, earlier_renders: Iterable[MeasuredRender] = ()) -> None:
        self._shapes: BoundedDict[str, deque[MeasuredRender]] = BoundedDict(_MAX_SHAPES)
        self._seconds: deque[float] = deque(maxlen=_RENDERS_OF_POOL)
        # Pairs of the measured and the estimated seconds for loading models.
        self._loads: deque[tuple[float, float]] = deque(maxlen=_RENDERS_PER_SHAPE)
        for render in earlier_renders:
            self.record(render)

    def record(self, render: MeasuredRender, load_seconds: float = 0.0) -> None:
        """Add a successful render."""
        _, other_seconds = self._split_seconds(render.shape)
        if load_seconds > 0 and other_seconds:
            measured_load_seconds = max(
                0.0, render.seconds - sum(other_seconds) / len(other_seconds)
            )
            self._loads.append((measured_load_seconds, load_seconds))
        renders = self._shapes.get(render.shape) or deque(maxlen=_RENDERS_PER_SHAPE)
        renders.append(render)
        # Stored again, so that the least recently rendered shape is dropped first.
        self._shapes[render.shape] = renders
        self._seconds.append(render.seconds)

    def build_tariff(self, price: RenderPrice | None, default_seconds: float) -> RenderTariff:
        """Return the tariff by which the cost of a render is estimated in advance.

        The tariff has the price, and for each shape the present estimates of the duration and of
        the number of pictures. If ``price`` is None, the tariff is empty.

        Args:
            default_seconds: the estimated duration while no render has been measured.
        """
        if price is None:
            return RenderTariff()
        return RenderTariff(
            price=price,
            seconds=_get_high_quantile(list(self._seconds)) if self._seconds else default_seconds,
            shapes={
                shape: RenderEstimate(
                    seconds=_get_high_quantile([render.seconds for render in renders]),
                    pictures=max(render.pictures for render in renders),
                )
                for shape, renders in self._shapes.items()
            },
        )

    def estimate_duration(self, shape: str, load_seconds: float = 0.0) -> Duration | None:
        """Return the estimated duration of a render, or None if its shape has not been measured."""
        return _summarise(self._list_seconds(shape, load_seconds))

    def estimate_remaining(
        self, shape: str | None, elapsed_seconds: float, load_seconds: float = 0.0
    ) -> Duration | None:
        """Return the estimated remaining time of a render that began ``elapsed_seconds`` ago.

        If the shape is None, all renders count. Returns None if no such render has been measured.
        """
        measured_seconds = self._list_seconds(shape, load_seconds)
        if not measured_seconds:
            return None
        return _summarise(
            [s - elapsed_seconds for s in measured_seconds if s > elapsed_seconds]
            or [elapsed_seconds * _OVERTIME]
        )

    def estimate_any_shape(self, elapsed_seconds: float = 0.0) -> Duration | None:
        """Return the estimated remaining time of a render of unknown shape.

        Returns None if no render has been measured.

        Args:
            elapsed_seconds: seconds since the render began, or 0 if it has not begun.
        """
        return self.estimate_remaining(None, elapsed_seconds)

    def _list_seconds(self, shape: str | None, load_seconds: float) -> list[float]:
        if shape is None:
            return list(self._seconds)
        seconds_with_loading, seconds_without_loading = self._split_seconds(shape)
        if load_seconds > 0 and not seconds_with_loading:
            extra_seconds = load_seconds * self._compute_load_factor()
            return [seconds + extra_seconds for seconds in seconds_without_loading]
        return (
            seconds_with_loading
            if load_seconds > 0
            else seconds_without_loading or seconds_with_loading
        )

    def _split_seconds(self, shape: str) -> tuple[list[float], list[float]]:
        """Return the shape's durations in two lists: renders that loaded models, and others."""
        seconds_with_loading: list[float] = []
        seconds_without_loading: list[float] = []
        for render in self._shapes.get(shape, ()):
            has_loaded = render.load_seconds > _LOADING_SHARE * render.seconds
            (seconds_with_loading if has_loaded else seconds_without_loading).append(render.seconds)
        return seconds_with_loading, seconds_without_loading

    def _compute_load_factor(self) -> float:
        """Return the factor by which to multiply the scheduler's estimates of loading times.

        The factor is a ratio of sums, because a single measurement may be wrong by seconds.
        """
        estimated_seconds = sum(estimate for _, estimate in self._loads)
        return (
            sum(measured_seconds for measured_seconds, _ in self._loads) / estimated_seconds
            if estimated_seconds
            else 1.0
        )


def _get_high_quantile(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(_QUANTILE * len(seconds)) - 1]


def _summarise(seconds: Sequence[float]) -> Duration | None:
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    squared_errors = sum((value - mean) ** 2 for value in seconds) + (_PRIOR_ERROR * mean) ** 2
    return Duration(mean=mean, variance=squared_errors / len(seconds))
