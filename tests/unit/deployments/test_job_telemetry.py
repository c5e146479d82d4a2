"""Tests of the metrics of jobs that end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from deployments import job_telemetry, observer
from deployments.job_telemetry import JobTelemetry
from moyin.domain.job import Job, JobStatus, Progress
from tests.unit.deployments.ray_metrics import FakeMetrics

SUBMITTED = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id="1", owner="ann", kind="render", status=JobStatus.SUCCEEDED, spec="s", steps=1,
    progress=Progress(value=1, max=1), results=(), error=None, attempts=1, priority=3, metadata={},
    created_at=SUBMITTED, started_at=SUBMITTED, finished_at=SUBMITTED + timedelta(seconds=20),
)  # fmt: skip


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> FakeMetrics:
    new_metrics = FakeMetrics()
    monkeypatch.setattr(observer, "metrics", new_metrics)
    monkeypatch.setattr(job_telemetry, "metrics", new_metrics)
    return new_metrics


def test_ended_jobs_are_counted_with_their_time(metrics: FakeMetrics) -> None:
    telemetry = JobTelemetry()
    telemetry.record(JOB)
    telemetry.record(replace(JOB, status=JobStatus.FAILED))
    telemetry.record(replace(JOB, kind="chat"))
    assert not metrics.values, "nothing is passed to Ray before the export"
    telemetry.export()
    telemetry.export()
    assert metrics.get("moyin_jobs_ended", kind="render", status="succeeded") == 1
    assert metrics.get("moyin_jobs_ended", kind="render", status="failed") == 1
    assert metrics.get("moyin_jobs_ended", kind="chat", status="succeeded") == 1
    assert metrics.get("moyin_job_seconds_sum", kind="render", status="succeeded") == 20
    assert metrics.get("moyin_job_seconds_bucket", kind="render", status="succeeded", le="30") == 1
    assert metrics.get("moyin_job_seconds_bucket", kind="render", status="succeeded", le="10") == 0


def test_time_of_a_retried_job_is_that_of_its_last_attempt(metrics: FakeMetrics) -> None:
    telemetry = JobTelemetry()
    telemetry.record(replace(JOB, queued_at=SUBMITTED + timedelta(seconds=15)))
    telemetry.export()
    assert metrics.get("moyin_job_seconds_sum", kind="render", status="succeeded") == 5


async def test_exports_go_on_after_an_error(
    metrics: FakeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_telemetry, "_INTERVAL_SECONDS", 0)
    telemetry = JobTelemetry()
    exports = 0
    exported_again = asyncio.Event()

    def export() -> None:
        nonlocal exports
        exports += 1
        if exports == 1:
            raise RuntimeError("Ray is away")
        exported_again.set()

    monkeypatch.setattr(telemetry, "export", export)
    exporting = asyncio.create_task(telemetry.keep_exporting())
    await asyncio.wait_for(exported_again.wait(), 30)
    exporting.cancel()


async def test_jobs_of_the_last_second_are_exported_at_the_end(metrics: FakeMetrics) -> None:
    telemetry = JobTelemetry()
    exporting = asyncio.create_task(telemetry.keep_exporting())
    await asyncio.sleep(0)
    telemetry.record(JOB)
    exporting.cancel()
    await asyncio.gather(exporting, return_exceptions=True)
    assert metrics.get("moyin_jobs_ended", kind="render", status="succeeded") == 1
