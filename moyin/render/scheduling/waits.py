"""Contains `WaitTimes`, which measures how long renders waited for a renderer."""

from __future__ import annotations

from collections import deque

_REMEMBERED_SECONDS = 3600.0
_MAX_WAITS = 512


class WaitTimes:
    """The waits of the last hour's renders, at most the last 512. All times are in seconds."""

    def __init__(self) -> None:
        self._waits: deque[tuple[float, float]] = deque(maxlen=_MAX_WAITS)

    def record(self, seconds: float, now: float) -> None:
        """Record the wait of a render that begins at the time ``now``."""
        self._waits.append((now, max(0.0, seconds)))

    def quantile(self, share: float, now: float) -> float | None:
        """Return the wait that this share of the renders did not exceed; None without renders."""
        waits = sorted(wait for at, wait in self._waits if now - at <= _REMEMBERED_SECONDS)
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else None
