"""Learns how much more time renders take to start than forecast, as other renders overtake them."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from moyin.domain.queue_place import Duration
from moyin.render.scheduling.window import Expectation
from moyin.system.bounded import BoundedDict

_MAX_RENDERS = 4096
_MAX_SCORES = 128
# With fewer scores than this, waits are assumed to last up to twice the forecast.
_MIN_SCORES = 20
_FIRST_FACTOR = 2.0
# Higher than the 0.9 that is wanted, because the scores of long waits arrive late.
_QUANTILE = 0.97
# Added to both times of a score, so that tiny forecasts do not give huge ratios.
_OFFSET_SECONDS = 2.0


class StartErrors:
    """Widens forecasts of start times as much as earlier forecasts were wrong.

    The error of a forecast is measured by a score: the actual time until the render started,
    divided by the forecast time. Scores are grouped by the render's position in the queue (1, 2 to
    3, 4 to 7 and so on), because more renders can overtake a render that is further back.
    """

    def __init__(self) -> None:
        # One forecast for each waiting render: the number of forecasts so far, and the group, mean
        # and time of this one.
        self._forecasts: BoundedDict[str, tuple[int, int, float, float]]
        self._forecasts = BoundedDict(_MAX_RENDERS)
        self._scores: dict[int, deque[float]] = {}
        # Selects the forecast that is kept for a render; all of its forecasts are equally likely.
        self._random = random.Random(0)

    def widen_forecasts(self, expectations: Sequence[Expectation], now: float) -> list[Expectation]:
        """Return the forecasts, with larger variances where earlier forecasts were wrong.

        One forecast of each render is remembered until the render starts, to compute its score.

        Args:
            now: the present time in seconds.
        """
        factors: dict[int, float] = {}
        widened_forecasts = []
        for position, expectation in enumerate(expectations, start=1):
            if expectation.starts_in is None:
                widened_forecasts.append(expectation)
                continue
            group = int(math.log2(position))
            if group not in factors:
                factors[group] = self._compute_factor(group)
            mean_seconds, forecast_count = (
                expectation.starts_in.mean,
                self._forecasts.get(expectation.pending.id, (0,))[0] + 1,
            )
            p90 = max(
                expectation.starts_in.p90,
                (mean_seconds + _OFFSET_SECONDS) * factors[group] - _OFFSET_SECONDS,
            )
            starts_in = Duration.from_p90(mean_seconds, p90)
            added_error = Duration(
                mean=0.0, variance=starts_in.variance - expectation.starts_in.variance
            )
            ends_in = None if expectation.ends_in is None else expectation.ends_in + added_error
            widened_forecasts.append(replace(expectation, starts_in=starts_in, ends_in=ends_in))
            if self._random.random() < 1 / forecast_count:
                self._forecasts[expectation.pending.id] = (forecast_count, group, mean_seconds, now)
            else:
                self._forecasts[expectation.pending.id] = (
                    forecast_count,
                    *self._forecasts[expectation.pending.id][1:],
                )
        return widened_forecasts

    def record_start(self, render_id: str, now: float) -> None:
        """Compute the score of the remembered forecast of a render that starts now."""
        earlier_forecast = self._forecasts.pop(render_id, None)
        if earlier_forecast is not None:
            _, group, mean_seconds, forecast_at = earlier_forecast
            score = (now - forecast_at + _OFFSET_SECONDS) / (mean_seconds + _OFFSET_SECONDS)
            self._scores.setdefault(group, deque(maxlen=_MAX_SCORES)).append(score)

    def drop_forecast(self, render_id: str) -> None:
        """Drop the forecast of a render that is no longer waiting."""
        self._forecasts.pop(render_id, None)

    def _compute_factor(self, group: int) -> float:
        scores = sorted(self._scores.get(group, ()))
        if len(scores) < _MIN_SCORES:
            return _FIRST_FACTOR
        return scores[math.ceil(_QUANTILE * len(scores)) - 1]
