"""Learns how much later than forecast renders start, since a forecast does not know who comes next."""

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
_SCORES = 128
# With fewer scores, waits are assumed to last up to twice the forecast.
_MIN_SCORES = 20
_FIRST_FACTOR = 2.0
# More than 0.9, because long waits become known late.
_QUANTILE = 0.97
# Added to both times, so that forecasts of a moment do not give huge ratios.
_OFFSET_SECONDS = 2.0


class StartErrors:
    """Widens forecasts of starts by the errors of earlier forecasts.

    A score is the time to a start, divided by the forecast. Renders further back have scores of
    their own, because more can come between: one group for each doubling of the position.
    """

    def __init__(self) -> None:
        # One forecast of each waiting render: the number seen so far, its group, mean and time.
        self._forecasts: BoundedDict[str, tuple[int, int, float, float]]
        self._forecasts = BoundedDict(_MAX_RENDERS)
        self._scores: dict[int, deque[float]] = {}
        # Which of its forecasts a render keeps; all are equally likely.
        self._random = random.Random(0)

    def widen(self, expected: Sequence[Expectation], now: float) -> list[Expectation]:
        """Return the forecast with realistic variances, and remember it until the renders start."""
        factors: dict[int, float] = {}
        widened = []
        for position, one in enumerate(expected, start=1):
            if one.starts_in is None:
                widened.append(one)
                continue
            group = int(math.log2(position))
            if group not in factors:
                factors[group] = self._compute_factor(group)
            mean, seen = one.starts_in.mean, self._forecasts.get(one.pending.id, (0,))[0] + 1
            p90 = max(
                one.starts_in.p90, (mean + _OFFSET_SECONDS) * factors[group] - _OFFSET_SECONDS
            )
            starts_in = Duration.from_p90(mean, p90)
            added = Duration(mean=0.0, variance=starts_in.variance - one.starts_in.variance)
            ends_in = None if one.ends_in is None else one.ends_in + added
            widened.append(replace(one, starts_in=starts_in, ends_in=ends_in))
            if self._random.random() < 1 / seen:
                self._forecasts[one.pending.id] = (seen, group, mean, now)
            else:
                self._forecasts[one.pending.id] = (seen, *self._forecasts[one.pending.id][1:])
        return widened

    def record_start(self, render_id: str, now: float) -> None:
        """Score the remembered forecast of a render that starts now."""
        remembered = self._forecasts.pop(render_id, None)
        if remembered is not None:
            _, group, mean, made_at = remembered
            score = (now - made_at + _OFFSET_SECONDS) / (mean + _OFFSET_SECONDS)
            self._scores.setdefault(group, deque(maxlen=_SCORES)).append(score)

    def forget(self, render_id: str) -> None:
        """Drop the forecast of a render that no longer waits."""
        self._forecasts.pop(render_id, None)

    def _compute_factor(self, group: int) -> float:
        scores = sorted(self._scores.get(group, ()))
        if len(scores) < _MIN_SCORES:
            return _FIRST_FACTOR
        return scores[math.ceil(_QUANTILE * len(scores)) - 1]
