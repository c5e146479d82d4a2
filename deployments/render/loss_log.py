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
        # The process id and the number of planned restarts, by actor.
        self._pids: dict[str, tuple[int, int]] = {}

    def record(self, name: str) -> None:
        """Record that the actor was lost."""
        self._losses.setdefault(name, deque(maxlen=_MAX_LOSSES)).append(self._clock())
        self._pids.pop(name, None)

    def observe_pid(self, name: str, pid: int | None, planned_restarts: int = 0) -> None:
        """Record a loss if the actor's ComfyUI has another process id than before.

        Args:
            planned_restarts: how often ComfyUI was restarted on purpose. A restart by which this
                number has changed is no loss.
        """
        if pid is None:
            return
        earlier_pid, earlier_restarts = self._pids.get(name, (pid, planned_restarts))
        if earlier_pid != pid and earlier_restarts == planned_restarts:
            self.record(name)
        self._pids[name] = (pid, planned_restarts)

    def remove_actor(self, name: str) -> None:
        """Delete the records of an actor that was removed."""
        self._losses.pop(name, None)
        self._pids.pop(name, None)

    def count(self, name: str) -> int:
        """Return how often the actor was lost in the last ten minutes."""
        window_start = self._clock() - _SECONDS
        return sum(at >= window_start for at in self._losses.get(name, ()))
