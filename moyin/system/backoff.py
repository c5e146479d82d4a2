"""`Backoff`: pauses between restarts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(slots=True)
class Backoff:
    """Calculates the pause before a restart, which doubles from ``first`` to ``longest`` seconds.

    A run of at least ``stable`` seconds resets the pause to ``first``.
    """

    first: float = 0.5
    longest: float = 30.0
    stable: float = 60.0
    _failures: int = 0

    def after(self, lifetime: float) -> float:
        """Return the seconds to pause after a run of ``lifetime`` seconds."""
        if lifetime >= self.stable:
            self._failures = 0
        delay = min(self.longest, self.first * 2.0**self._failures)
        # Not counted beyond the longest pause, so that the exponent can't overflow.
        if delay < self.longest:
            self._failures += 1
        return delay
