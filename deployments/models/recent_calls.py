"""Contains `RecentCalls`, which sums up a replica's calls of the last five minutes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moyin.text.routing.telemetry import CallRecord

WINDOW_SECONDS = 300.0
# About sixteen calls a second; with more, the sums are those of a shorter time.
_MAX_CALLS = 5_000
# The sums of so many calls take milliseconds, so viewers share them.
_REUSE_SECONDS = 1.0


class _Call(NamedTuple):
    ended_at: float
    backend: str
    seconds: float
    output_tokens: int
    failed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CallSummary:
    """The calls of one back end in a period, without cancelled ones.

    Attributes:
        p50_seconds, p90_seconds: quantiles of the durations of successful calls; None without any.
        output_tokens_per_second: all output tokens by all seconds of successful calls.
    """

    calls: int = 0
    errors: int = 0
    p50_seconds: float | None = None
    p90_seconds: float | None = None
    output_tokens_per_second: float | None = None


class RecentCalls:
    """Remembers the calls of the last five minutes, at most 5,000.

    Args:
        clock: returns the present time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._calls: deque[_Call] = deque(maxlen=_MAX_CALLS)
        self._sums: Mapping[str, CallSummary] = {}
        self._summed_at = float("-inf")

    def record(self, call: CallRecord) -> None:
        """Remember a finished call, unless the client cancelled it."""
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
        """Return the sums by back end, of up to a second ago; those without calls are missing."""
        now = self._clock()
        if 0 <= now - self._summed_at < _REUSE_SECONDS:
            return self._sums
        since = now - WINDOW_SECONDS
        while self._calls and self._calls[0].ended_at < since:
            self._calls.popleft()
        calls = defaultdict[str, list[_Call]](list)
        for call in self._calls:
            calls[call.backend].append(call)
        self._sums = {backend: _summarize(members) for backend, members in calls.items()}
        self._summed_at = now
        return self._sums


def _summarize(calls: Iterable[_Call]) -> CallSummary:
    calls = list(calls)
    succeeded = [call for call in calls if not call.failed]
    durations = sorted(call.seconds for call in succeeded)
    total, tokens = sum(durations), sum(call.output_tokens for call in succeeded)
    return CallSummary(
        calls=len(calls),
        errors=len(calls) - len(succeeded),
        p50_seconds=durations[len(durations) // 2] if durations else None,
        p90_seconds=durations[len(durations) * 9 // 10] if durations else None,
        output_tokens_per_second=tokens / total if tokens and total > 0 else None,
    )
