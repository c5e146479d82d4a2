"""Exports the metrics of the models app, and traces of model calls.

Requests only queue their data; the thread of `deployments.observer.RequestObserver` exports the
queues every second. Metrics of model calls have OpenTelemetry's names for generative AI, with
underscores instead of dots, because Ray does not allow dots. Spans go to the tracer of the process,
if Ray's ``--tracing-startup-hook`` or ``opentelemetry-instrument`` has set one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import TypeVar

from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from ray.util import metrics

from deployments.models.recent_calls import RecentCalls
from deployments.observer import BatchHistogram
from moyin.domain.text_batch import LineResult, LineStatus
from moyin.http.breaker import BreakerState
from moyin.text.judging.verdict import Outcome
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.telemetry import CallRecord

_T = TypeVar("_T")

# Bounds of the queues: more calls and sampled answers than a replica has between two exports.
_CALL_CAPACITY = 50_000
_OUTCOME_CAPACITY = 10_000
_NANOSECONDS = 1e9
_CALL_LABELS = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "moyin_backend",
)
# Bucket boundaries as OpenTelemetry's conventions advise.
_TOKEN_BOUNDS = tuple(float(4**exponent) for exponent in range(14))
_DURATION_BOUNDS = tuple(0.01 * 2**exponent for exponent in range(14))
_FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_PER_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class CallTelemetry:
    """Records a replica's model calls and circuit breakers as metrics and traces.

    Implements `moyin.text.routing.telemetry.Telemetry`. A thread calls `export` every second.

    Attributes:
        recent: the summary of the calls of the last minutes.
    """

    def __init__(self) -> None:
        self.recent = RecentCalls()
        self._calls: deque[CallRecord] = deque(maxlen=_CALL_CAPACITY)
        self._breaker_changes: deque[tuple[str, BreakerState | None]] = deque(maxlen=_CALL_CAPACITY)
        self._states: dict[str, BreakerState] = {}
        self._tokens = BatchHistogram(
            "gen_ai_client_token_usage",
            "Tokens of calls, by input and output.",
            _TOKEN_BOUNDS,
            (*_CALL_LABELS, "gen_ai_token_type"),
        )
        self._duration = BatchHistogram(
            "gen_ai_server_request_duration_seconds",
            "Seconds from the request to the end of the answer.",
            _DURATION_BOUNDS,
            (*_CALL_LABELS, "error_type"),
        )
        self._first_token = BatchHistogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Seconds to the first chunk of a stream.",
            _FIRST_TOKEN_BOUNDS,
            _CALL_LABELS,
        )
        self._per_token = BatchHistogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Seconds per token after the first chunk of a stream.",
            _PER_TOKEN_BOUNDS,
            _CALL_LABELS,
        )
        self._breaker_state = metrics.Gauge(
            "moyin_backend_breaker",
            "1 for the current state of a back end's circuit breaker, 0 for the other states.",
            tag_keys=("moyin_backend", "state"),
        )
        self._transitions = metrics.Counter(
            "moyin_backend_breaker_transitions",
            "Changes of a back end's circuit breaker to a state.",
            tag_keys=("moyin_backend", "state"),
        )

    def record_call(self, call: CallRecord) -> None:
        self._calls.append(call)
        self.recent.record(call)

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        self._breaker_changes.append((backend, state))

    def forget_backend(self, backend: str) -> None:
        self._breaker_changes.append((backend, None))

    def export(self) -> None:
        """Export the queued calls and the states of circuit breakers."""
        for backend, state in _drain_queue(self._breaker_changes):
            if state is None:
                self._states.pop(backend, None)
                continue
            self._states[backend] = state
            self._transitions.inc(1, {"moyin_backend": backend, "state": state.value})
        # All gauges are set in every export, because Ray drops a gauge that was not set for a while.
        for backend, current_state in self._states.items():
            for state in BreakerState:
                self._breaker_state.set(
                    float(state is current_state), {"moyin_backend": backend, "state": state.value}
                )
        calls = _drain_queue(self._calls)
        if calls:
            self._export_metrics(calls)
            _export_spans(calls)

    def _export_metrics(self, calls: Iterable[CallRecord]) -> None:
        token_samples, duration_samples, first_token_samples, per_token_samples = [], [], [], []
        for call in calls:
            labels = (call.operation, call.provider, call.requested_model, call.model, call.backend)
            usage = call.usage
            duration_samples.append(((*labels, call.error or ""), call.seconds))
            if usage.prompt_tokens:
                token_samples.append(((*labels, "input"), float(usage.prompt_tokens)))
            if usage.output_tokens:
                token_samples.append(((*labels, "output"), float(usage.output_tokens)))
            if call.first_token_seconds is not None:
                first_token_samples.append((labels, call.first_token_seconds))
                if call.error is None and usage.output_tokens > 1:
                    generation_seconds = call.seconds - call.first_token_seconds
                    per_token_samples.append(
                        (labels, generation_seconds / (usage.output_tokens - 1))
                    )
        self._tokens.add(token_samples)
        self._duration.add(duration_samples)
        self._first_token.add(first_token_samples)
        self._per_token.add(per_token_samples)


class JudgeMetrics:
    """Publishes the number of sampled answers that the judge handled, by outcome.

    Requests call `record_outcome`, which is fast. A thread calls `export`.
    """

    def __init__(self) -> None:
        self._queue: deque[Outcome] = deque(maxlen=_OUTCOME_CAPACITY)
        self._samples = metrics.Counter(
            "moyin_judge_samples",
            "Answers that were sampled for the judge, by outcome.",
            tag_keys=("outcome",),
        )

    def record_outcome(self, outcome: Outcome) -> None:
        """Queue the outcome of a sample for the next export."""
        self._queue.append(outcome)

    def export(self) -> None:
        """Add the queued outcomes to Ray's metrics."""
        counts = Counter(self._queue.popleft() for _ in range(len(self._queue)))
        for outcome, count in counts.items():
            self._samples.inc(count, {"outcome": outcome.value})


class LearningMetrics:
    """Publishes the number of requests that the router could learn from, by what became of them.

    The router learned from a request, left it out of the sample, failed to learn from it, or lost
    it because the learning queue was full. A thread calls `export`.
    """

    def __init__(self, background_queue: BackgroundQueue) -> None:
        self._background_queue = background_queue
        self._exported = dict.fromkeys(self._read_counts(), 0)
        self._requests = metrics.Counter(
            "moyin_quality_requests",
            "Requests that the router could learn from, by outcome.",
            tag_keys=("outcome",),
        )

    def export(self) -> None:
        """Add to Ray's metrics how much each count has risen since the previous export."""
        for outcome, count in self._read_counts().items():
            if count > self._exported[outcome]:
                self._requests.inc(count - self._exported[outcome], {"outcome": outcome})
                self._exported[outcome] = count

    def _read_counts(self) -> dict[str, int]:
        background_queue = self._background_queue
        sampler = background_queue.sampler
        return {
            "learned": sampler.accepted,
            "left_out": sampler.skipped,
            "failed": background_queue.failed,
            "lost": background_queue.dropped,
        }


class BatchMetrics:
    """Publishes the number of ended batch lines, by status; a thread calls `export`."""

    def __init__(self) -> None:
        self._ended = Counter[str]()
        self._exported = Counter[str]()
        self._lines = metrics.Counter(
            "moyin_batch_lines",
            "Lines of text batches that were answered or have failed, by the error's code.",
            tag_keys=("status", "error_type"),
        )

    def record_line(self, result: LineResult) -> None:
        """Count an ended batch line for the next export."""
        self._ended[result.error_code or ""] += 1

    def export(self) -> None:
        """Add to Ray's metrics the number of lines that have ended since the previous export."""
        for error_code, count in list(self._ended.items()):
            if count > self._exported[error_code]:
                status = LineStatus.FAILED if error_code else LineStatus.COMPLETED
                tags = {"status": status.value, "error_type": error_code}
                self._lines.inc(count - self._exported[error_code], tags)
                self._exported[error_code] = count


def _drain_queue(queue: deque[_T]) -> list[_T]:
    return [queue.popleft() for _ in range(len(queue))]


def _export_spans(calls: Iterable[CallRecord]) -> None:
    provider = trace.get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider):
        return
    tracer, propagator = provider.get_tracer("moyin"), TraceContextTextMapPropagator()
    for call in calls:
        parent_context = None
        if call.traceparent is not None:
            parent_context = propagator.extract({"traceparent": call.traceparent.decode("latin-1")})
        span = tracer.start_span(
            f"{call.operation} {call.model}",
            context=parent_context,
            kind=SpanKind.CLIENT,
            start_time=int((call.ended_at - call.seconds) * _NANOSECONDS),
            attributes=_build_span_attributes(call),
        )
        if call.error is not None:
            span.set_attribute("error.type", call.error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=int(call.ended_at * _NANOSECONDS))


def _build_span_attributes(call: CallRecord) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.requested_model,
        "gen_ai.response.model": call.model,
        "gen_ai.usage.input_tokens": call.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": call.usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.usage.cached_tokens,
        "moyin.backend": call.backend,
        "moyin.request_id": call.request_id,
    }
    if call.first_token_seconds is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = call.first_token_seconds
    return attributes
