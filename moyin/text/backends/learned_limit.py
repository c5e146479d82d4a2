"""Learns how many calls a server runs concurrently, from the time to the first token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moyin.system.slots import Slots

_MIN_PAUSE_SECONDS = 60.0
_MAX_PAUSE_SECONDS = 960.0
_RECENT_ENDS = 256
_NEWEST_WEIGHT = 0.2
# A call counts as queued if its first token took more than twice the usual time plus these seconds.
_MARGIN_SECONDS = 0.05
# Number of queued calls that lower the limit; one late token alone is no evidence.
_MAX_LATE_CALLS = 3


@dataclass(slots=True)
class TrackedCall:
    """A call that a server is running.

    Attributes:
        kind: calls of one kind usually take the same time to their first token.
        sent_at: the time at which the call was sent, in monotonic seconds.
        running: number of calls at the server at that time, including this one.
        on_first_token: called once, with the seconds that passed since the first token arrived.
    """

    kind: tuple[str, int] = ("", 0)
    sent_at: float = 0.0
    running: int = 1
    on_first_token: Callable[[TrackedCall, float], None] | None = None

    def record_first_token(self, seconds_ago: float = 0.0) -> None:
        """Record that the first token arrived; the method has no effect if it is called again.

        Args:
            seconds_ago: the seconds since the first token; 0 for an answer that arrived as a whole.
        """
        on_first_token, self.on_first_token = self.on_first_token, None
        if on_first_token is not None:
            on_first_token(self, seconds_ago)


class LearnedLimit:
    """Sets a server's slot limit to the number of calls that the server runs concurrently.

    A server such as Ollama keeps further calls in its own queue, from which they cannot be moved
    to another server. The limit is learned from the time to the first token:

    - If a call gets its first token while all earlier calls still run, the server runs all of
      them concurrently.
    - If a call's first token is late, and another call ended while this call was waiting for it,
      the call has been in the server's queue. The limit was too high and is lowered.
    - While calls wait for a slot, the limit doubles. Once it has been too high, it stays for a
      minute and then grows by one at a time. If it is too high again, this pause doubles.

    Args:
        slots: slots of the server; their limit is set to 1 at first.
        max_limit: the highest limit.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, slots: Slots, *, max_limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slots = slots
        self._max_limit = max_limit
        self._clock = clock
        self._running = 0
        self._confirmed_limit = 1
        self._late_calls = 0
        self._was_too_high = False
        self._pause = _MIN_PAUSE_SECONDS
        self._grows_after = 0.0
        self._end_times: deque[float] = deque(maxlen=_RECENT_ENDS)
        self._usual_seconds: dict[tuple[str, int], float] = {}
        slots.set_limit(1)
        slots.on_full = self._raise_limit

    @contextmanager
    def track(self, kind: str, size: int) -> Iterator[TrackedCall]:
        """Yield a call that counts as running at the server during the ``with`` block.

        Args:
            kind: a name, such as the request's path. Calls of the same kind and about the same
                ``size`` should take about the same time to their first token.
            size: the size of the request in bytes.
        """
        self._running += 1
        try:
            yield TrackedCall(
                (kind, size.bit_length()), self._clock(), self._running, self._record_first_token
            )
        finally:
            self._running -= 1
            self._end_times.append(self._clock())

    def _record_first_token(self, call: TrackedCall, seconds_ago: float) -> None:
        arrived_at = self._clock() - seconds_ago
        waited_seconds, usual_seconds = (
            arrived_at - call.sent_at,
            self._usual_seconds.get(call.kind),
        )
        if not any(call.sent_at < end <= arrived_at for end in self._end_times):
            self._usual_seconds[call.kind] = (
                waited_seconds
                if usual_seconds is None
                else usual_seconds + (waited_seconds - usual_seconds) * _NEWEST_WEIGHT
            )
            self._confirm_concurrency(call.running)
        elif usual_seconds is not None and waited_seconds > 2 * usual_seconds + _MARGIN_SECONDS:
            self.record_waiting(call)

    def record_waiting(self, call: TrackedCall) -> None:
        """Record that a call waited in the server's queue, or was refused by a full queue."""
        running_count = call.running
        self._late_calls += 1
        if running_count < 2 or (
            running_count <= self._confirmed_limit and self._late_calls < _MAX_LATE_CALLS
        ):
            return
        limit = self._slots.limit
        if limit is not None and running_count <= limit:
            self._slots.set_limit(running_count - 1)
            self._was_too_high = True
            self._confirmed_limit = min(self._confirmed_limit, running_count - 1)
            self._late_calls = 0
            self._grows_after = self._clock() + self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)

    def _confirm_concurrency(self, running_count: int) -> None:
        if running_count < self._confirmed_limit:
            return
        self._late_calls = 0
        if running_count == self._confirmed_limit:
            return
        self._confirmed_limit = running_count
        self._pause = _MIN_PAUSE_SECONDS
        limit = self._slots.limit
        if limit is not None and limit < running_count:
            self._slots.set_limit(min(running_count, self._max_limit))
        if self._slots.is_awaited:
            self._raise_limit()

    def _raise_limit(self) -> None:
        """Raise the limit if the server has run as many concurrent calls as there are usable slots.

        While only background calls wait, the slots reserved for other calls are not usable.
        """
        limit, usable_count = self._slots.limit, self._slots.max_usable
        if (
            limit is not None
            and usable_count is not None
            and usable_count <= self._confirmed_limit
            and limit < self._max_limit
            and self._clock() >= self._grows_after
        ):
            raised_limit = limit + 1 if self._was_too_high else 2 * limit
            self._slots.set_limit(min(raised_limit, self._max_limit))
