"""Telemetry in memory: the twin of the one that counts through Ray, for tests."""

from __future__ import annotations

from moyin.http.breaker import BreakerState
from moyin.text.routing.telemetry import CallRecord

__all__ = ["RecordingTelemetry"]


class RecordingTelemetry:
    """Attributes:
    calls: in the order in which they ended.
    states: of each back end's breaker, in the order in which it came into them.
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
