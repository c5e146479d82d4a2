"""Tests the summaries of each back end's calls in the last five minutes."""

from __future__ import annotations

from deployments.models.recent_calls import CallSummary, RecentCalls
from moyin.domain.money import Usage
from moyin.text.routing.telemetry import CallRecord


def make_call(
    backend: str, ended_at: float, seconds: float, error: str | None = None
) -> CallRecord:
    return CallRecord(
        operation="chat", provider="openai", backend=backend, requested_model="m", model="m",
        request_id="r", usage=Usage(output_tokens=0 if error else 20), seconds=seconds,
        first_token_seconds=None, error=error, ended_at=ended_at, traceparent=None,
    )  # fmt: skip


def test_calls_of_five_minutes_are_summed_by_backend() -> None:
    clock = [1000.0]
    recent_calls = RecentCalls(lambda: clock[0])
    recent_calls.record(make_call("a", 600, 9.0))
    for seconds in range(1, 11):
        recent_calls.record(make_call("a", 990, float(seconds)))
    recent_calls.record(make_call("a", 990, 60.0, "backend_timeout"))
    recent_calls.record(make_call("a", 990, 60.0, "cancelled"))
    recent_calls.record(make_call("b", 990, 1.0, "backend_error"))
    summaries = recent_calls.summarize()
    assert summaries["a"] == CallSummary(
        calls=11,
        errors=1,
        p50_seconds=6.0,
        p90_seconds=10.0,
        output_tokens_per_second=200 / 55,
    )
    assert summaries["b"] == CallSummary(calls=1, errors=1)
    clock[0] = 1500
    assert recent_calls.summarize() == {}


def test_a_summary_is_reused_for_a_second() -> None:
    clock = [1000.0]
    recent_calls = RecentCalls(lambda: clock[0])
    first_summary = recent_calls.summarize()
    recent_calls.record(make_call("a", 1000, 1.0))
    assert recent_calls.summarize() is first_summary
    clock[0] = 1001
    assert recent_calls.summarize()["a"].calls == 1
