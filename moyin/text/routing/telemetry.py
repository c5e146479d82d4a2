"""Defines what is reported of calls and breakers, for metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from moyin.domain.money import Usage
from moyin.http.breaker import BreakerState

__all__ = ["CallRecord", "NoTelemetry", "Telemetry"]


# Not frozen: freezing doubles the cost of creating one per call.
@dataclass(kw_only=True, slots=True)
class CallRecord:
    """Describes one finished call to one back end.

    Attributes:
        operation: ``chat`` or ``embeddings``, as OpenTelemetry names it.
        provider: kind of server.
        requested_model: name that the client sent, possibly an alias.
        first_token_seconds: time to the first piece of a stream; None: there was none.
        error: code of the error that ended it; ``cancelled`` if the client disconnected.
        ended_at: seconds since 1970-01-01.
        traceparent: the client's trace context in W3C format, if it has one.
    """

    operation: str
    provider: str
    backend: str
    requested_model: str
    model: str
    request_id: str
    usage: Usage
    seconds: float
    first_token_seconds: float | None
    error: str | None
    ended_at: float
    traceparent: bytes | None


class Telemetry(Protocol):
    """Receives reports on the hot path, so it must not do work there."""

    def record_call(self, record: CallRecord) -> None:
        """Record a finished call."""

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        """Record a new state of a back end's breaker; the first is closed."""

    def forget_backend(self, backend: str) -> None:
        """Drop the state of a back end that is no longer configured."""


class NoTelemetry:
    """Ignores all reports, for tests and tools."""

    def record_call(self, record: CallRecord) -> None:
        return None

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        return None

    def forget_backend(self, backend: str) -> None:
        return None
