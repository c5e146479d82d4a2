"""Defines the interface by which the router reports calls and breakers to metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from moyin.domain.money import Usage
from moyin.http.breaker import BreakerState


# Not frozen: freezing doubles the cost of creating one per call.
@dataclass(kw_only=True, slots=True)
class CallRecord:
    """Measurements of one finished call to a back end.

    Attributes:
        operation: ``chat`` or ``embeddings``, as in OpenTelemetry's conventions.
        provider: kind of server.
        requested_model: the model name in the request, which may be an alias.
        first_token_seconds: time to the first bytes of a stream; None if there were none.
        error: code of the error that ended the call, or ``cancelled`` if the client disconnected or
            another hedged call answered first. It is None for a successful call.
        ended_at: time of the end, in seconds since 1970-01-01.
        traceparent: the client's trace context in W3C format; None if it sent none.
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
    """Interface of the object that receives reports about calls and breakers.

    It is called while requests wait, so its methods must be fast.
    """

    def record_call(self, record: CallRecord) -> None:
        """Record a finished call."""

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        """Record the new state of a back end's breaker; until the first report, it is closed."""

    def forget_backend(self, backend: str) -> None:
        """Remove the metrics of a back end that is no longer configured."""


class NoTelemetry:
    """Telemetry that ignores all reports, used if no other telemetry is configured."""

    def record_call(self, record: CallRecord) -> None:
        return None

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        return None

    def forget_backend(self, backend: str) -> None:
        return None
