"""Defines `WaitTimes`, which records how long renders waited for a renderer."""

from __future__ import annotations

from collections import deque

_MAX_AGE_SECONDS = 3600.0
_MAX_WAITS = 512


class WaitTimes:
    """The waiting times in seconds of the last hour's renders, at most 512 of them."""

    def __init__(self) -> None:
        self._waits: deque[tuple[float, float]] = deque(maxlen=_MAX_WAITS)

    def record(self, seconds: float, now: float) -> None:
        """Record that a render, which begins now, has waited ``seconds``."""
        self._waits.append((now, max(0.0, seconds)))

    def compute_quantile(self, share: float, now: float) -> float | None:
        """Return the waiting time that the given share (0 to 1) of recent renders did not exceed.

        The result is in seconds, or None if no render began in the last hour. A ``share`` of 0.5
        means the median.
        """
        waits = sorted(wait for at, wait in self._waits if now - at <= _MAX_AGE_SECONDS)
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else None
