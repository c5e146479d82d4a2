"""Provides telemetry for tests that records calls in memory instead of in Ray's metrics."""

from __future__ import annotations

from moyin.http.breaker import BreakerState
from moyin.text.routing.telemetry import CallRecord

__all__ = ["RecordingTelemetry"]


class RecordingTelemetry:
    """Records calls and breaker states.

    Attributes:
        calls: the finished calls, in order.
        states: the successive states of each back end's breaker.
    """

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.states: dict[str, list[BreakerState]] = {}

    def record_call(self, call: CallRecord) -> None:
        self.calls.append(call)

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        self.states.setdefault(backend, []).append(state)

    def forget_backend(self, backend: str) -> None:
        del self.states[backend]
