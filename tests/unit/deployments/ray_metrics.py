"""Contains `FakeMetrics`, which replaces `ray.util.metrics` in unit tests."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class FakeMetrics:
    """Replaces Ray's metrics: stores values in memory by name and labels."""

    def __init__(self) -> None:
        self.values: defaultdict[tuple[str, frozenset[tuple[str, str]]], float] = defaultdict(float)

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        return _FakeMetric(self, name, tag_keys)

    Gauge = Counter

    def get(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]


class _FakeMetric:
    def __init__(self, metrics: FakeMetrics, name: str, keys: tuple[str, ...]) -> None:
        self._metrics, self._name, self._keys = metrics, name, set(keys)

    def inc(self, number: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._keys
        assert number > 0, "Ray refuses a counter that does not rise"
        self._metrics.values[self._name, frozenset(tags.items())] += number

    def set(self, number: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._keys
        self._metrics.values[self._name, frozenset(tags.items())] = number
