"""Stops asking a back end that fails, and asks again in time."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

__all__ = ["Breaker", "BreakerState"]

_THRESHOLD = 3
_FIRST_COOLDOWN = 2.0
_LONGEST_COOLDOWN = 60.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after three failures in a row; after a cooldown lets one request probe.

    A failed probe doubles the cooldown, to a minute at most. Every request that was admitted must
    end in exactly one of `succeed`, `fail` or `abandon`.

    Args:
        clock: seconds that never go back, such as ``time.monotonic``.
        changed: hears of every new state; half open once a probe goes.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        changed: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._told = BreakerState.CLOSED
        self._failures = 0
        self._cooldown = _FIRST_COOLDOWN
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        waiting = self._clock() < self._open_until
        return BreakerState.OPEN if waiting else BreakerState.HALF_OPEN

    @property
    def ready(self) -> bool:
        """Whether `admit` would let a request through now."""
        if self._open_until is None:
            return True
        return not self._probing and self._clock() >= self._open_until

    @property
    def retry_after(self) -> float:
        """Seconds until the next probe may go; 0 when one may go now."""
        return max(0.0, (self._open_until or 0.0) - self._clock())

    def admit(self) -> bool:
        """Let a request through, or not. In the half-open state only one at a time."""
        if self._open_until is None:
            return True
        if not self.ready:
            return False
        self._probing = True
        self._tell(BreakerState.HALF_OPEN)
        return True

    def succeed(self) -> None:
        self._failures = 0
        if self._open_until is not None:
            self._open_until = None
            self._cooldown = _FIRST_COOLDOWN
            self._probing = False
            self._tell(BreakerState.CLOSED)

    def fail(self, *, retry_after: float | None = None, at_once: bool = False) -> None:
        """A request failed.

        Args:
            retry_after: seconds that the back end asked us to stay away; opens at once.
            at_once: open on this single failure, for the longest cooldown: asking again won't
                help soon, as with a refused key.
        """
        probed, self._probing = self._probing, False
        self._failures += 1
        if retry_after is not None:
            self._open(max(retry_after, 0.0))
        elif at_once:
            self._open(_LONGEST_COOLDOWN)
        elif probed or (self._failures >= _THRESHOLD and self.state is not BreakerState.OPEN):
            # Requests that were under way together fail together: once is enough.
            self._open(self._cooldown)
            self._cooldown = min(self._cooldown * 2, _LONGEST_COOLDOWN)

    def abandon(self) -> None:
        """The request ended without telling anything about the back end."""
        if self._probing:
            self._probing = False
            self._tell(BreakerState.OPEN)

    def _open(self, seconds: float) -> None:
        # A late failure of an older request must not shorten a longer wait.
        self._open_until = max(self._open_until or 0.0, self._clock() + seconds)
        self._tell(BreakerState.OPEN)

    def _tell(self, state: BreakerState) -> None:
        if state is not self._told:
            self._told = state
            self._changed(state)
