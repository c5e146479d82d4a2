"""The render activity in Temporal's own test environment, on a fake renderer and real stores."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from deployments.render.activities import RenderActivities, prompt_id_of
from deployments.render.guard import RenderGuard
from deployments.render.pool import Pool
from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.pools import PoolRules
from moyin.domain.prompt import ComfyPrompt, PromptRecord
from moyin.domain.renderer import RendererStatus
from moyin.domain.serialization import encode, from_plain
from moyin.errors import InvalidGraph, WorkerLost
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.types import StepInput
from moyin.render.comfyui.sizes import ModelSizes
from moyin.store.artifacts import ArtifactStore, new_artifact_id, step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.limits import LimitStore
from moyin.store.prompts import PromptStore
from moyin.store.renders import CacheRules
from moyin.store.sql import Database
from moyin.testing.renderer import FakeRenderer
from moyin.testing.renders import MemoryRenders

JOB = "5f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3a"
GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}


class NoEvents:
    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        assert job_id == JOB


class Bench:
    """An activity with all that it needs."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder / 'moyin.db'}")
        self.blobs = BlobStore(f"file://{folder / 'blobs'}")
        self.artifacts = ArtifactStore(self.database)
        self.jobs = JobStore(self.database)
        self.renderer = FakeRenderer()
        self.pool = Pool("default")
        self.pool.up("comfyui-default-0", self.renderer, RendererStatus(ready=True))
        self.cache = MemoryRenders()
        self.environment = ActivityEnvironment()
        events: Any = NoEvents()
        self.activities = RenderActivities(
            pool=self.pool,
            blobs=self.blobs,
            artifacts=self.artifacts,
            jobs=self.jobs,
            prompts=PromptStore(self.database),
            events=events,
            record=JobStatusWriter(jobs=self.jobs, events=events, frames=events),
            sizes=ModelSizes(folder / "models"),
            cache=self.cache,
            rules=CacheRules(kind="k"),
            guard=RenderGuard("default", PoolRules(), LimitStore(self.database)),
        )

    async def run(
        self,
        graph: Any,
        *,
        index: int = 0,
        job_id: str = JOB,
        owner: str = "ann",
        comfyui: ComfyPrompt | None = None,
        **members: Any,
    ) -> StepResult:
        step = Step(kind=StepKind.RENDER, payload=graph, **members)
        steps = (step,) * (index + 1)
        spec = await self.blobs.put(encode(JobSpec(kind="render", steps=steps, comfyui=comfyui)))
        asked = StepInput(job_id=job_id, owner=owner, index=index, spec=spec)
        result: StepResult = await self.environment.run(self.activities.render_step, asked)
        return result


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.database.ready()
    yield bench
    await bench.database.close()


async def test_a_result_names_its_files_the_same_way_every_time(bench: Bench) -> None:
    first, second = await bench.run(GRAPH), await bench.run(GRAPH)
    assert first == second
    assert first.backend == "comfyui-default-0"
    [artifact] = first.artifacts
    assert artifact.id == step_artifact_id(JOB, 0, 0)
    output = json.loads(await bench.blobs.get(first.output))
    assert output == {
        "text": None,
        "body": {"outputs": {"2": {"images": [f"artifact:{artifact.id}"]}}},
        "artifacts": [f"artifact:{artifact.id}"],
    }
    assert bench.renderer.started == [JOB], "the second one found it done"


async def test_files_of_nodes_that_are_no_result_are_left_out(bench: Bench) -> None:
    assert len((await bench.run(GRAPH, outputs=("2",))).artifacts) == 1
    result = await bench.run(GRAPH, outputs=("1",))
    assert result.artifacts == ()
    assert json.loads(await bench.blobs.get(result.output))["body"] == {"outputs": {}}


async def test_later_steps_have_prompt_ids_of_their_own(bench: Bench) -> None:
    await bench.run(GRAPH, index=1)
    assert bench.renderer.started == [prompt_id_of(JOB, 1)]
    assert prompt_id_of(JOB, 0) == JOB
    assert str(uuid.UUID(prompt_id_of(JOB, 1))) == prompt_id_of(JOB, 1) != prompt_id_of(JOB, 2)


async def test_inputs_are_looked_up_for_their_owner(bench: Bench) -> None:
    sha256 = await bench.blobs.put(b"png")
    artifact = Artifact(
        id=new_artifact_id(), name="in.png", media_type="image/png", size=3, sha256=sha256
    )
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": f"artifact:{artifact.id}"}}}
    await bench.artifacts.add(artifact, owner="bob")
    with pytest.raises(ApplicationError) as caught:
        await bench.run(graph)
    assert (caught.value.type, caught.value.non_retryable) == ("artifact_not_found", True)
    assert bench.renderer.started == []

    mine = Artifact(
        id=new_artifact_id(), name="in.png", media_type="image/png", size=3, sha256=sha256
    )
    await bench.artifacts.add(mine, owner="ann")
    graph["1"]["inputs"] = {"image": f"artifact:{mine.id}"}
    await bench.run(graph)
    asked = bench.renderer.requests[JOB]
    assert asked.files == {f"moyin/{sha256}.png": sha256}
    assert asked.graph["1"]["inputs"] == {"image": f"moyin/{sha256}.png"}


async def test_a_lost_renderer_is_worth_a_retry_and_a_bad_graph_is_not(bench: Bench) -> None:
    bench.renderer.failure = WorkerLost("gone")
    with pytest.raises(ApplicationError) as caught:
        await bench.run(GRAPH)
    assert (caught.value.type, caught.value.non_retryable) == ("worker_lost", False)
    bench.renderer.failure = InvalidGraph("no such node", details={"error": {}})
    with pytest.raises(ApplicationError) as caught:
        await bench.run(GRAPH)
    assert (caught.value.type, caught.value.non_retryable) == ("invalid_graph", True)


async def test_what_an_attempt_cost_is_known_to_the_next(bench: Bench) -> None:
    bench.renderer.failure = WorkerLost("status -9", details={"ended": "comfyui"})
    beats: list[Any] = []
    bench.environment.on_heartbeat = lambda *details: beats.append(details)
    with pytest.raises(ApplicationError) as caught:
        await bench.run(GRAPH)
    assert (caught.value.type, caught.value.non_retryable) == ("worker_lost", False)
    bench.environment.info = replace(bench.environment.info, heartbeat_details=beats[-1])
    with pytest.raises(ApplicationError, match="status -9") as caught:
        await bench.run(GRAPH)
    assert (caught.value.type, caught.value.non_retryable) == ("render_poisoned", True)


async def test_a_bug_shows_nothing_of_itself_and_is_not_repeated_for_ever(bench: Bench) -> None:
    bench.renderer.failure = ValueError("/secret/path")  # type: ignore[assignment]
    beats: list[Any] = []
    bench.environment.on_heartbeat = lambda *details: beats.append(details)
    verdicts = []
    for _ in range(6):
        with pytest.raises(ApplicationError) as caught:
            await bench.run(GRAPH)
        assert "secret" not in caught.value.message
        verdicts.append(caught.value.non_retryable)
        bench.environment.info = replace(bench.environment.info, heartbeat_details=beats[-1])
    assert verdicts == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("details", "status", "cancelled"),
    [
        (ActivityCancellationDetails(cancel_requested=True), JobStatus.RUNNING, True),
        (ActivityCancellationDetails(not_found=True), JobStatus.CANCELLED, True),
        (ActivityCancellationDetails(not_found=True), JobStatus.RUNNING, False),
        (ActivityCancellationDetails(worker_shutdown=True), JobStatus.RUNNING, False),
        (ActivityCancellationDetails(timed_out=True), JobStatus.RUNNING, False),
    ],
)
async def test_only_a_wanted_end_reaches_the_prompt(
    bench: Bench, details: ActivityCancellationDetails, status: JobStatus, cancelled: bool
) -> None:
    await bench.jobs.create(
        NewJob(
            id=JOB, owner="ann", kind="render", spec="0" * 64, heads=((StepKind.RENDER, "default"),)
        )
    )
    bench.renderer.held.clear()
    task = asyncio.create_task(bench.run(GRAPH))
    await bench.renderer.busy.wait()
    if status.is_final:
        await bench.jobs.finish(JOB, 1, status, None)
    bench.environment.cancel(cancellation_details=details)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.renderer.cancelled == ([JOB] if cancelled else [])


async def test_what_the_history_says_of_an_interrupted_prompt_is_kept(bench: Bench) -> None:
    await bench.jobs.create(
        NewJob(
            id=JOB, owner="ann", kind="render", spec="0" * 64, heads=((StepKind.RENDER, "default"),)
        )
    )
    bench.renderer.interrupted = PromptRecord(
        outputs={}, meta={}, status="error", completed=False, messages=(("execution_start", {}),)
    )
    bench.renderer.held.clear()
    task = asyncio.create_task(bench.run(GRAPH))
    await bench.renderer.busy.wait()
    bench.environment.cancel(
        cancellation_details=ActivityCancellationDetails(cancel_requested=True)
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    record = (await bench.jobs.find(JOB)).record
    assert record is not None
    kept = json.loads(await bench.blobs.get(record))["record"]
    assert from_plain(PromptRecord, kept) == bench.renderer.interrupted


async def test_it_beats_while_it_waits(bench: Bench) -> None:
    """A loaded machine makes pauses longer, never shorter."""
    now = asyncio.get_running_loop().time
    beats: asyncio.Queue[float] = asyncio.Queue()
    bench.environment.on_heartbeat = lambda *_: beats.put_nowait(now())
    bench.pool.down("comfyui-default-0")
    bench.renderer.held.clear()
    began = now()
    task = asyncio.create_task(bench.run(GRAPH))
    async with asyncio.timeout(60):
        first = await beats.get()
        assert first - began > 0.9, "a short step is over before its first beat"
        second = await beats.get()
        assert second - first > 1.9, "every other second while it waits"
        bench.pool.up("comfyui-default-0", bench.renderer, RendererStatus(ready=True))
        await bench.renderer.busy.wait()
        last = await beats.get()
        # Every second from when it begins.
        while (beat := await beats.get()) - last > 1.5:
            last = beat
        bench.renderer.held.set()
        await task


OTHER = "6f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3b"


async def with_a_file(bench: Bench) -> None:
    """From now on, what is rendered is in the store."""
    stored = await bench.blobs.put(b"png")
    bench.renderer.file = replace(bench.renderer.file, sha256=stored)


async def test_an_equal_graph_is_not_rendered_again(bench: Bench) -> None:
    await with_a_file(bench)
    first = await bench.run(GRAPH)
    # How a node is titled and in which order things are written changes no picture.
    titled = {
        "1": {"_meta": {"title": "x"}, "inputs": GRAPH["1"]["inputs"], "class_type": "LoadImage"}
    }
    second = await bench.run(titled, job_id=OTHER)
    assert bench.renderer.started == [JOB]
    assert (first.cached, second.cached, second.backend) == (False, True, "cache")
    [artifact] = second.artifacts
    assert artifact.id == step_artifact_id(OTHER, 0, 0)
    assert artifact.sha256 == first.artifacts[0].sha256
    body = json.loads(await bench.blobs.get(second.output))["body"]
    assert body == {"outputs": {"2": {"images": [f"artifact:{artifact.id}"]}}}
    # What is no result of this one may be one of the other.
    assert (await bench.run(GRAPH, job_id=OTHER, outputs=("1",))).artifacts == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "bob"},
        {"cache": False},
        {"comfyui": ComfyPrompt()},
        {"graph": {"1": {"class_type": "LoadImage", "inputs": {"image": "y.png"}}}},
    ],
)
async def test_others_and_who_wants_none_get_nothing_that_is_kept(
    bench: Bench, changes: dict[str, Any]
) -> None:
    await with_a_file(bench)
    await bench.run(GRAPH)
    result = await bench.run(**{"graph": GRAPH, "job_id": OTHER, **changes})
    assert (result.cached, bench.renderer.started) == (False, [JOB, OTHER])


async def test_what_was_not_meant_to_be_kept_is_not(bench: Bench) -> None:
    await with_a_file(bench)
    await bench.run(GRAPH, cache=False)
    bench.renderer.repeatable = False
    await bench.run(GRAPH, job_id=OTHER)
    bench.renderer.failure = InvalidGraph("no such node", details={"error": {}})
    with pytest.raises(ApplicationError):
        await bench.run(GRAPH, job_id=str(uuid.uuid4()))
    assert bench.cache.kept == {}


async def test_a_kept_result_is_not_pruned_while_it_is_given_again(
    bench: Bench, tmp_path: Path
) -> None:
    await with_a_file(bench)
    [artifact] = (await bench.run(GRAPH)).artifacts
    [path] = (tmp_path / "blobs").rglob(artifact.sha256)
    os.utime(path, (1, 1))
    assert (await bench.run(GRAPH, job_id=OTHER)).cached
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert await bench.blobs.delete(artifact.sha256, yesterday) is None


async def test_a_result_whose_file_is_gone_is_made_again(bench: Bench) -> None:
    await bench.run(GRAPH)  # into a store that has lost the file at once
    assert len(bench.cache.kept) == 1
    assert not (await bench.run(GRAPH, job_id=OTHER)).cached
    assert bench.renderer.started == [JOB, OTHER]
