"""How long to wait before a restart."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(slots=True)
class Backoff:
    """Doubles from ``first`` to ``longest`` seconds; a run of ``stable`` seconds forgives all."""

    first: float = 0.5
    longest: float = 30.0
    stable: float = 60.0
    _failures: int = 0

    def after(self, lifetime: float) -> float:
        """Seconds to wait after a run that lasted ``lifetime`` seconds."""
        if lifetime >= self.stable:
            self._failures = 0
        delay = min(self.longest, self.first * 2.0**self._failures)
        # Past the cap the exponent has no use, and it would overflow one day.
        if delay < self.longest:
            self._failures += 1
        return delay
