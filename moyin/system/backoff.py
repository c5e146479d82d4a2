"""`Backoff`: pauses between restarts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(slots=True)
class Backoff:
    """Doubles the pause after each failure, from ``first`` to ``longest`` seconds.

    A run of at least ``stable`` seconds resets it.
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
        # A larger exponent would change nothing, and overflow one day.
        if delay < self.longest:
            self._failures += 1
        return delay
