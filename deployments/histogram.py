"""Histograms of counters with the label ``le``, as Prometheus knows them.

Ray's own type takes values one by one, and handing one value to Ray costs as much as routing a
request; here a whole batch is counted first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable

from ray.util import metrics

__all__ = ["Histogram"]


class Histogram:
    """Args:
    bounds: rising; the last bucket, ``+Inf``, is added.
    labels: names of the labels, in the order of the samples' values.
    """

    def __init__(
        self, name: str, description: str, bounds: tuple[float, ...], labels: tuple[str, ...]
    ) -> None:
        self._bounds = bounds
        self._le = (*(f"{bound:g}" for bound in bounds), "+Inf")
        self._labels = labels
        self._buckets = metrics.Counter(f"{name}_bucket", description, tag_keys=(*labels, "le"))
        self._sum = metrics.Counter(f"{name}_sum", description, tag_keys=labels)
        self._count = metrics.Counter(f"{name}_count", description, tag_keys=labels)

    def take(self, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Count ``samples``: values of the labels, and what was measured."""
        fitting: Counter[tuple[tuple[str, ...], int]] = Counter()
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        counts: Counter[tuple[str, ...]] = Counter()
        for values, sample in samples:
            fitting[values, bisect_left(self._bounds, sample)] += 1
            sums[values] += sample
            counts[values] += 1
        for (values, smallest), number in fitting.items():
            tags = self._tags(values)
            for le in self._le[smallest:]:
                self._buckets.inc(number, {**tags, "le": le})
        for values, number in counts.items():
            self._count.inc(number, self._tags(values))
            if sums[values] > 0:
                self._sum.inc(sums[values], self._tags(values))

    def _tags(self, values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels, values, strict=True))
