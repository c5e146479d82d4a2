"""Tests the query for measured renders, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.render.deployment import load_measurements
from moyin.domain.job import JobStatus, StepKind, StepResult
from moyin.domain.render_run import MeasuredRender
from moyin.store.jobs import JobStore, NewJob
from moyin.store.measured_renders import list_measured_renders
from moyin.store.sql import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.ensure_schema()
    yield database
    await database.close()


def _build_result(index: int = 0, seconds: float = 4.0, pool: str = "default") -> StepResult:
    return StepResult(
        index=index,
        output="0" * 64,
        backend=f"comfyui-{pool}-3",
        gpu_seconds=seconds,
        load_seconds=1.0,
        shape=f"shape-{seconds}",
        pictures=2,
    )


async def _store_ended_job(
    database: Database,
    *results: StepResult,
    step_kinds: tuple[StepKind, ...] = (StepKind.RENDER,),
    pool: str = "default",
    status: JobStatus = JobStatus.SUCCEEDED,
    children: int | None = None,
) -> str:
    jobs = JobStore(database)
    new_job = NewJob(
        id=str(uuid.uuid4()),
        owner="ann",
        kind="render",
        spec="0" * 64,
        heads=tuple((kind, pool if kind is StepKind.RENDER else "") for kind in step_kinds),
        children=children,
    )
    await jobs.create(new_job)
    await jobs.finish(new_job.id, 1, status, None, results=results)
    await jobs.mark_dispatched(new_job.id)
    return new_job.id


async def test_renders_of_all_jobs_are_listed_from_the_oldest(database: Database) -> None:
    await _store_ended_job(database, _build_result(seconds=4.0))
    chat_result = StepResult(index=0, output="0" * 64)
    await _store_ended_job(
        database, chat_result, _build_result(1, 5.0), step_kinds=(StepKind.CHAT, StepKind.RENDER)
    )
    step_kinds = (StepKind.RENDER, StepKind.RENDER)
    await _store_ended_job(
        database, _build_result(0, 6.0), _build_result(1, 7.0), step_kinds=step_kinds, children=2
    )
    assert await list_measured_renders(database, "default") == [
        MeasuredRender(shape=f"shape-{seconds}", seconds=seconds, load_seconds=1.0, pictures=2)
        for seconds in (4.0, 5.0, 6.0, 7.0)
    ]
    estimate = (await load_measurements(database, "default")).estimate_duration("shape-7.0")
    assert estimate is not None and estimate.mean == 7.0


async def test_only_measured_successes_of_the_pool_count(database: Database) -> None:
    await _store_ended_job(database, _build_result(pool="other"), pool="other")
    await _store_ended_job(
        database, _build_result(pool="large")
    )  # needed the memory of another pool
    await _store_ended_job(database, _build_result(pool="default-2"), pool="default-2")
    await _store_ended_job(database, _build_result(), status=JobStatus.FAILED)
    await _store_ended_job(database, StepResult(index=0, output="0" * 64))  # of an earlier version
    cached_result = StepResult(
        index=0, output="0" * 64, backend="cache", cached=True, gpu_seconds=0.0, load_seconds=0.0
    )
    await _store_ended_job(database, cached_result)
    await _store_ended_job(database, *(_build_result(n) for n in range(65)), children=65)
    assert await list_measured_renders(database, "default") == []


async def test_at_most_256_renders_are_listed(database: Database) -> None:
    for number in range(5):
        results = [_build_result(index, number) for index in range(64)]
        await _store_ended_job(database, *results, step_kinds=(StepKind.RENDER,) * 64, children=64)
    renders = await list_measured_renders(database, "default")
    assert [render.seconds for render in renders] == [n for n in range(1, 5) for _ in range(64)]


async def test_pool_starts_without_its_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken_database = Database(f"sqlite:///{tmp_path / 'none' / 'moyin.db'}")
    measurements = await load_measurements(broken_database, "default")
    await broken_database.close()
    assert measurements.estimate_any_shape() is None
    assert "starts without measured renders" in caplog.text
