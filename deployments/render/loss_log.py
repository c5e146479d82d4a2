"""Contains `LossLog`, which counts the recent losses of a pool's actors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_SECONDS = 600.0
_MAX_LOSSES = 100


class LossLog:
    """Counts how often each actor, or its ComfyUI process, died or failed to start in ten minutes.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._losses: dict[str, deque[float]] = {}
        self._pids: dict[str, int] = {}

    def record(self, name: str) -> None:
        """Record that the actor was lost."""
        self._losses.setdefault(name, deque(maxlen=_MAX_LOSSES)).append(self._clock())
        self._pids.pop(name, None)

    def observe_pid(self, name: str, pid: int | None) -> None:
        """Record a loss if the actor's ComfyUI has another process id than before."""
        if pid is None:
            return
        if self._pids.get(name, pid) != pid:
            self.record(name)
        self._pids[name] = pid

    def remove_actor(self, name: str) -> None:
        """Delete the records of an actor that was removed."""
        self._losses.pop(name, None)
        self._pids.pop(name, None)

    def count(self, name: str) -> int:
        """Return how often the actor was lost in the last ten minutes."""
        window_start = self._clock() - _SECONDS
        return sum(at >= window_start for at in self._losses.get(name, ()))
