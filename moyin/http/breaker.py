"""Defines a circuit breaker, which stops calls to a failing back end for a while."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

_THRESHOLD = 3
_FIRST_COOLDOWN = 2.0
_LONGEST_COOLDOWN = 60.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """A circuit breaker that opens after three failures in a row, and probes after a cooldown.

    A failed probe doubles the cooldown, up to a minute. Every admitted request must end in exactly
    one call of `succeed`, `fail` or `abandon`.

    Args:
        clock: a monotonic clock in seconds, such as ``time.monotonic``.
        on_change: called with every new state.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._reported = BreakerState.CLOSED
        self._failures = 0
        self._cooldown = _FIRST_COOLDOWN
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        is_cooling_down = self._clock() < self._open_until
        return BreakerState.OPEN if is_cooling_down else BreakerState.HALF_OPEN

    @property
    def ready(self) -> bool:
        """True if `admit` would admit a request now; reading this property admits none."""
        if self._open_until is None:
            return True
        return not self._probing and self._clock() >= self._open_until

    @property
    def retry_after(self) -> float:
        """The seconds until a request is admitted; 0 if one is admitted now."""
        return max(0.0, (self._open_until or 0.0) - self._clock())

    def admit(self) -> bool:
        """Return True if a request may be sent now; a half-open breaker admits one at a time."""
        if self._open_until is None:
            return True
        if not self.ready:
            return False
        self._probing = True
        self._report_state(BreakerState.HALF_OPEN)
        return True

    def succeed(self) -> None:
        self._failures = 0
        if self._open_until is not None:
            self._open_until = None
            self._cooldown = _FIRST_COOLDOWN
            self._probing = False
            self._report_state(BreakerState.CLOSED)

    def fail(self, *, retry_after: float | None = None, opens_at_once: bool = False) -> None:
        """Record a failed request, which may open the breaker.

        Args:
            retry_after: the seconds that the back end asks clients to wait. The breaker opens for
                that time, even on this single failure.
            opens_at_once: True to open for the longest cooldown on this single failure. Meant for errors
                that last, such as a rejected key.
        """
        was_probe, self._probing = self._probing, False
        self._failures += 1
        if retry_after is not None:
            self._open(max(retry_after, 0.0))
        elif opens_at_once:
            self._open(_LONGEST_COOLDOWN)
        elif was_probe or (self._failures >= _THRESHOLD and self.state is not BreakerState.OPEN):
            # Concurrent requests fail together and count once.
            self._open(self._cooldown)
            self._cooldown = min(self._cooldown * 2, _LONGEST_COOLDOWN)

    def abandon(self) -> None:
        """Record a request that shows neither success nor failure, such as a cancelled one."""
        if self._probing:
            self._probing = False
            self._report_state(BreakerState.OPEN)

    def _open(self, seconds: float) -> None:
        # A late failure of an older request must not shorten the cooldown.
        self._open_until = max(self._open_until or 0.0, self._clock() + seconds)
        self._report_state(BreakerState.OPEN)

    def _report_state(self, state: BreakerState) -> None:
        if state is not self._reported:
            self._reported = state
            self._on_change(state)
