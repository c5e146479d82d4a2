"""What is noted of calls and breakers, for metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from moyin.domain.money import Usage
from moyin.http.breaker import BreakerState

__all__ = ["CallRecord", "NoTelemetry", "Telemetry"]


# Not frozen: one is made per call, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class CallRecord:
    """One call to one back end that is over.

    Attributes:
        operation: ``chat`` or ``embeddings``, in OpenTelemetry's words.
        provider: what kind of server the back end is.
        requested_model: the name that the client asked for; an alias, perhaps.
        first_token_seconds: seconds to the first piece of a stream; None: there was none.
        error: code of the error that it ended with; ``cancelled`` when the client left.
        ended_at: seconds since 1970-01-01.
        traceparent: the client's trace, as W3C writes it, where there is one.
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
    """Takes notes on the hot path: it may keep them, not work on them."""

    def record_call(self, record: CallRecord) -> None: ...

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        """The breaker of ``backend`` changed its state; its first is closed."""

    def forget_backend(self, backend: str) -> None:
        """``backend`` is configured no longer."""


class NoTelemetry:
    """For tests and tools."""

    def record_call(self, record: CallRecord) -> None:
        return None

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        return None

    def forget_backend(self, backend: str) -> None:
        return None
