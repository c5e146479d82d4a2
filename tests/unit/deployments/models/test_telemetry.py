from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.models.telemetry import (
    BatchMetrics,
    CallTelemetry,
    JudgeMetrics,
    LearningMetrics,
)
from moyin.domain.money import Usage
from moyin.domain.text_batch import LineResult
from moyin.http.breaker import BreakerState
from moyin.text.judging.verdict import Outcome
from moyin.text.routing.background_queue import BackgroundQueue
from moyin.text.routing.telemetry import CallRecord
from tests.unit.deployments.ray_metrics import FakeMetrics

CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "ollama",
    "gen_ai_request_model": "fast",
    "gen_ai_response_model": "qwen3",
    "moyin_backend": "gpu-0",
}


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> FakeMetrics:
    new_metrics = FakeMetrics()
    monkeypatch.setattr("deployments.observer.metrics", new_metrics)
    monkeypatch.setattr("deployments.models.telemetry.metrics", new_metrics)
    return new_metrics


def make_record(**changes: Any) -> CallRecord:
    values = {
        "operation": "chat",
        "provider": "ollama",
        "backend": "gpu-0",
        "requested_model": "fast",
        "model": "qwen3",
        "request_id": "r1",
        "usage": Usage(input_tokens=90, cached_tokens=10, output_tokens=11),
        "seconds": 1.5,
        "first_token_seconds": 0.5,
        "error": None,
        "ended_at": 1_000.0,
        "traceparent": None,
    }
    return CallRecord(**{**values, **changes})


def test_metrics_have_opentelemetry_names(metrics: FakeMetrics) -> None:
    telemetry = CallTelemetry()
    telemetry.record_call(make_record())
    telemetry.record_call(
        make_record(usage=Usage(), first_token_seconds=None, seconds=0.2, error="overloaded")
    )
    telemetry.export()
    tokens_metric = "gen_ai_client_token_usage"
    assert metrics.get(f"{tokens_metric}_sum", **CALL, gen_ai_token_type="input") == 100
    assert metrics.get(f"{tokens_metric}_count", **CALL, gen_ai_token_type="output") == 1
    buckets = [
        metrics.get(f"{tokens_metric}_bucket", **CALL, gen_ai_token_type="output", le=upper_bound)
        for upper_bound in ("4", "16", "64", "+Inf")
    ]
    assert buckets == [0, 1, 1, 1]
    duration_metric = "gen_ai_server_request_duration_seconds"
    assert metrics.get(f"{duration_metric}_sum", **CALL, error_type="") == 1.5
    assert metrics.get(f"{duration_metric}_count", **CALL, error_type="overloaded") == 1
    assert metrics.get("gen_ai_server_time_to_first_token_seconds_sum", **CALL) == 0.5
    assert metrics.get("gen_ai_server_time_per_output_token_seconds_sum", **CALL) == 0.1


def test_breaker_has_one_state_at_a_time(metrics: FakeMetrics) -> None:
    telemetry = CallTelemetry()
    for state in (BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN):
        telemetry.record_breaker_state("gpu-0", state)
        telemetry.export()
        values_by_state = {
            other_state: metrics.get(
                "moyin_backend_breaker", moyin_backend="gpu-0", state=other_state.value
            )
            for other_state in BreakerState
        }
        assert [other_state for other_state, value in values_by_state.items() if value == 1] == [
            state
        ]
    name = "moyin_backend_breaker_transitions"
    assert metrics.get(name, moyin_backend="gpu-0", state="open") == 1


def test_breaker_state_is_exported_until_its_back_end_is_removed(metrics: FakeMetrics) -> None:
    telemetry = CallTelemetry()
    telemetry.record_breaker_state("gpu-0", BreakerState.CLOSED)
    telemetry.export()
    metrics.values.clear()  # as Ray does with gauges that were not set for a while
    telemetry.export()
    assert metrics.get("moyin_backend_breaker", moyin_backend="gpu-0", state="closed") == 1
    assert not any(name.endswith("transitions") for name, _ in metrics.values)
    telemetry.forget_backend("gpu-0")
    metrics.values.clear()
    telemetry.export()
    assert not metrics.values


def test_spans_go_to_the_tracer_of_the_process(
    metrics: FakeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = InMemorySpanExporter()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(
        "deployments.models.telemetry.trace.get_tracer_provider", lambda: tracer_provider
    )
    telemetry = CallTelemetry()
    traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    telemetry.record_call(make_record(traceparent=traceparent))
    telemetry.record_call(make_record(error="cancelled"))
    telemetry.export()
    tracer_provider.shutdown()
    answered_span, cancelled_span = spans.get_finished_spans()
    assert answered_span.name == "chat qwen3"
    assert answered_span.parent is not None
    assert f"{answered_span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert (answered_span.start_time, answered_span.end_time) == (
        998_500_000_000,
        1_000_000_000_000,
    )
    attributes = dict(answered_span.attributes or {})
    assert attributes["gen_ai.usage.input_tokens"] == 100
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 10
    assert attributes["gen_ai.request.model"] == "fast"
    assert (
        cancelled_span.attributes is not None
        and cancelled_span.attributes["error.type"] == "cancelled"
    )


def test_no_span_is_recorded_without_a_tracer(metrics: FakeMetrics) -> None:
    telemetry = CallTelemetry()
    telemetry.record_call(make_record())
    telemetry.export()  # must neither fail nor create a tracer
    assert metrics.values


def test_each_learned_request_is_counted_once(metrics: FakeMetrics) -> None:
    queue = BackgroundQueue()
    learning_metrics = LearningMetrics(queue)
    queue.sampler.accepted, queue.sampler.skipped, queue.failed = 3, 7, 1
    learning_metrics.export()
    queue.sampler.accepted = 5
    learning_metrics.export()
    assert metrics.get("moyin_quality_requests", outcome="learned") == 5
    assert metrics.get("moyin_quality_requests", outcome="left_out") == 7
    assert metrics.get("moyin_quality_requests", outcome="failed") == 1


def test_each_outcome_of_the_judge_is_counted_once(metrics: FakeMetrics) -> None:
    judge_metrics = JudgeMetrics()
    for outcome in (Outcome.STARTED, Outcome.AGREED, Outcome.STARTED):
        judge_metrics.record_outcome(outcome)
    judge_metrics.export()
    judge_metrics.export()
    assert metrics.get("moyin_judge_samples", outcome="started") == 2
    assert metrics.get("moyin_judge_samples", outcome="agreed") == 1


def test_each_line_of_a_batch_is_counted_once(metrics: FakeMetrics) -> None:
    batch_metrics = BatchMetrics()
    for code in (None, "backend_timeout", None):
        batch_metrics.record_line(LineResult(number=1, http_status=200, body=b"", error_code=code))
    batch_metrics.export()
    batch_metrics.record_line(LineResult(number=1, http_status=200, body=b""))
    batch_metrics.export()
    assert metrics.get("moyin_batch_lines", status="completed", error_type="") == 3
    assert metrics.get("moyin_batch_lines", status="failed", error_type="backend_timeout") == 1
