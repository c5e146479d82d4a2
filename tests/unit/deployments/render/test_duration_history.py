"""Tests of loading the durations that a pool measured before its start."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.render.duration_history import load_durations
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.serialization import encode
from moyin.render.protocol.shape import compute_shape
from moyin.render.scheduling.durations import RenderDurations
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.sql import Database

GRAPH = {"1": {"class_type": "Sampler", "inputs": {"steps": 20}}}
OTHER = {"1": {"class_type": "Sampler", "inputs": {"steps": 30}}}


@dataclass
class Bench:
    database: Database
    jobs: JobStore
    blobs: BlobStore

    async def ended(
        self,
        seconds: float | None,
        graph: dict[str, Any] = GRAPH,
        *,
        pool: str = "default",
        status: JobStatus = JobStatus.SUCCEEDED,
        steps: int = 1,
    ) -> str:
        """Store a job that has ended, and return the digest of its spec."""
        step = Step(kind=StepKind.RENDER, payload=graph)
        spec = await self.blobs.put(encode(JobSpec(kind="render", steps=(step,) * steps)))
        new = NewJob(
            id=str(uuid.uuid4()), owner="ann", kind="render", spec=spec,
            heads=((StepKind.RENDER, pool),) * steps,
        )  # fmt: skip
        await self.jobs.create(new)
        results = [
            StepResult(index=index, output=spec, gpu_seconds=seconds) for index in range(steps)
        ]
        await self.jobs.finish(new.id, 1, status, None, results=results)
        await self.jobs.mark_dispatched(new.id)
        return spec

    async def load(self) -> RenderDurations:
        durations = RenderDurations()
        await load_durations(durations, self.database, self.blobs, "default")
        return durations


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield Bench(database, JobStore(database), BlobStore(f"file://{tmp_path / 'blobs'}"))
    await database.close()


async def test_durations_are_those_of_earlier_renders_of_the_shape(bench: Bench) -> None:
    for seconds in (4.0, 6.0):
        await bench.ended(seconds)
    await bench.ended(20.0, OTHER)
    durations = await bench.load()
    own, other = (durations.estimate(compute_shape(graph)) for graph in (GRAPH, OTHER))
    assert own is not None and own.mean == 5.0
    assert other is not None and other.mean == 20.0


async def test_only_measured_successes_of_the_pool_count(bench: Bench) -> None:
    await bench.ended(4.0, pool="other")
    await bench.ended(4.0, status=JobStatus.FAILED)
    await bench.ended(4.0, steps=2)
    await bench.ended(None)
    await bench.ended(0.0)  # from the cache
    assert (await bench.load()).estimate_any() is None


async def test_deleted_spec_is_left_out(bench: Bench) -> None:
    deleted = await bench.ended(4.0)
    await bench.ended(6.0, OTHER)
    await bench.blobs.delete(deleted, datetime.now(UTC) + timedelta(hours=1))
    durations = await bench.load()
    assert durations.estimate(compute_shape(GRAPH)) is None
    assert durations.estimate(compute_shape(OTHER)) is not None


async def test_pool_starts_without_its_database(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Database(f"sqlite:///{tmp_path / 'none' / 'moyin.db'}")
    durations = RenderDurations()
    await load_durations(durations, broken, bench.blobs, "default")
    await broken.close()
    assert durations.estimate_any() is None
    assert "starts without measured durations" in caplog.text
