"""Provides histograms that are written in batches.

Ray's own histogram takes values one by one, and each costs as much as routing a request. Here a
whole batch is counted first, then added to counters with Prometheus' label ``le``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable

from ray.util import metrics

__all__ = ["Histogram"]


class Histogram:
    """Counts samples in buckets.

    Args:
        bounds: upper bounds in rising order; ``+Inf`` is added.
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

    def add(self, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Count samples, each a pair of label values and a measured value."""
        buckets: Counter[tuple[tuple[str, ...], int]] = Counter()
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        counts: Counter[tuple[str, ...]] = Counter()
        for values, sample in samples:
            buckets[values, bisect_left(self._bounds, sample)] += 1
            sums[values] += sample
            counts[values] += 1
        for (values, smallest), number in buckets.items():
            tags = self._tags(values)
            for le in self._le[smallest:]:
                self._buckets.inc(number, {**tags, "le": le})
        for values, number in counts.items():
            self._count.inc(number, self._tags(values))
            if sums[values] > 0:
                self._sum.inc(sums[values], self._tags(values))

    def _tags(self, values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels, values, strict=True))
