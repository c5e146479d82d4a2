"""Contains `RecentCalls`, which summarizes a replica's calls of the last five minutes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moyin.text.routing.telemetry import CallRecord

WINDOW_SECONDS = 300.0
# About sixteen calls per second; at a higher rate, the summary covers a shorter time.
_MAX_CALLS = 5_000
# Seconds; a summary of that many calls takes milliseconds, so viewers share it.
_REUSE_SECONDS = 1.0


class _Call(NamedTuple):
    ended_at: float
    backend: str
    seconds: float
    output_tokens: int
    failed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CallSummary:
    """Statistics of one back end's calls in a period, without cancelled calls.

    Attributes:
        p50_seconds, p90_seconds: median and 90th percentile of the duration of successful calls;
            None if there are none.
        output_tokens_per_second: sum of the output tokens of all successful calls, divided by the
            sum of their durations; None if there are none.
    """

    calls: int = 0
    errors: int = 0
    p50_seconds: float | None = None
    p90_seconds: float | None = None
    output_tokens_per_second: float | None = None


class RecentCalls:
    """Stores the calls of the last five minutes, up to 5,000.

    Args:
        clock: returns the current time in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._calls: deque[_Call] = deque(maxlen=_MAX_CALLS)
        self._sums: Mapping[str, CallSummary] = {}
        self._summed_at = float("-inf")

    def record(self, call: CallRecord) -> None:
        """Store a finished call, unless the client cancelled it."""
        if call.error != "cancelled":
            self._calls.append(
                _Call(
                    call.ended_at,
                    call.backend,
                    call.seconds,
                    call.usage.output_tokens,
                    call.error is not None,
                )
            )

    def summarize(self) -> Mapping[str, CallSummary]:
        """Return a summary, up to a second old, for each back end that had calls."""
        now = self._clock()
        if 0 <= now - self._summed_at < _REUSE_SECONDS:
            return self._sums
        window_start = now - WINDOW_SECONDS
        while self._calls and self._calls[0].ended_at < window_start:
            self._calls.popleft()
        calls_by_backend = defaultdict[str, list[_Call]](list)
        for call in self._calls:
            calls_by_backend[call.backend].append(call)
        self._sums = {backend: _summarize(members) for backend, members in calls_by_backend.items()}
        self._summed_at = now
        return self._sums


def _summarize(calls: Iterable[_Call]) -> CallSummary:
    calls = list(calls)
    successful_calls = [call for call in calls if not call.failed]
    durations = sorted(call.seconds for call in successful_calls)
    total_seconds, output_tokens = (
        sum(durations),
        sum(call.output_tokens for call in successful_calls),
    )
    return CallSummary(
        calls=len(calls),
        errors=len(calls) - len(successful_calls),
        p50_seconds=durations[len(durations) // 2] if durations else None,
        p90_seconds=durations[len(durations) * 9 // 10] if durations else None,
        output_tokens_per_second=output_tokens / total_seconds
        if output_tokens and total_seconds > 0
        else None,
    )
