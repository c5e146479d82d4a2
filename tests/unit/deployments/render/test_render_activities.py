"""Tests the render activity in Temporal's test environment, with a fake renderer."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from deployments.job_services import JobServices
from deployments.render.bookkeeper import RunBookkeeper
from deployments.render.guard import RenderGuard
from deployments.render.pool import Pool
from deployments.render.render_activities import RenderActivities, derive_prompt_id
from deployments.render.result_cache import RenderResultCache
from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.limits import PoolRules
from moyin.domain.prompt import ComfyPrompt, PromptRecord
from moyin.domain.render_run import RenderPrice, RenderRun
from moyin.domain.renderer import RendererStatus
from moyin.domain.serialization import encode, from_plain
from moyin.errors import InvalidGraph, RenderFailed, WorkerLost
from moyin.jobs.workflows.types import StepInput, StepOutcome
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.protocol.shape import compute_shape
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.render.scheduling.window import Window
from moyin.store.artifacts import ArtifactStore, derive_step_artifact_id, generate_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.limits import LimitStore
from moyin.store.prompts import PromptStore
from moyin.store.render_cache import CacheRules
from moyin.store.render_ledger import RenderLedger
from moyin.store.sql import Database
from moyin.store.usage import UsageEntry
from moyin.store.usage_reports import CallFilter, UsageReports
from moyin.testing.fakes import InMemoryRenderCache
from moyin.testing.renderer import FakeRenderer
from tests.waiting import eventually

JOB_ID = "5f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3a"
GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}


class FakeEvents:
    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        assert job_id == JOB_ID


class FakeStatusWriter:
    """Runs steps without recording them in a database.

    Attributes:
        starts: how often each step was marked as started, by the step's index.
    """

    def __init__(self) -> None:
        self.starts: Counter[int] = Counter()

    async def run_step(
        self,
        step: StepInput,
        work: Callable[[], Awaitable[StepResult]],
        *,
        starts_at_once: bool,
    ) -> StepOutcome:
        assert not starts_at_once
        return StepOutcome(result=await work())

    async def mark_started(self, step: StepInput) -> bool:
        self.starts[step.index] += 1
        return True


class ActivityHarness:
    """The render activity, with its stores and its fake renderer."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder / 'moyin.db'}")
        self.blobs = BlobStore(f"file://{folder / 'blobs'}")
        self.artifacts = ArtifactStore(self.database)
        self.jobs = JobStore(self.database)
        self.renderer = FakeRenderer()
        window = Window()
        self.measurements = window.measurements
        self.pool = Pool("default", RenderScheduler(window))
        self.pool.add_renderer("comfyui-default-0", self.renderer, RendererStatus(ready=True))
        self.cache = InMemoryRenderCache()
        self.environment = ActivityEnvironment()
        events: Any = FakeEvents()
        self.steps = FakeStatusWriter()
        status_writer: Any = self.steps
        unused_service: Any = None
        limits = LimitStore(self.database)
        self.activities = RenderActivities(
            pool=self.pool,
            services=JobServices(
                database=self.database,
                artifacts=self.artifacts,
                jobs=self.jobs,
                limits=limits,
                blobs=self.blobs,
                events=events,
                frames=unused_service,
                status_writer=status_writer,
                temporal=unused_service,
            ),
            prompts=PromptStore(self.database),
            model_sizes=ModelSizes(folder / "models"),
            result_cache=RenderResultCache(self.cache, self.blobs, CacheRules(kind="k")),
            guard=RenderGuard("default", PoolRules(), limits),
            bookkeeper=RunBookkeeper(RenderLedger(self.database)),
            price=RenderPrice(usd_per_gpu_hour=Decimal(36)),
        )

    async def run_render(
        self,
        graph: Any,
        *,
        index: int = 0,
        job_id: str = JOB_ID,
        owner: str = "ann",
        comfyui: ComfyPrompt | None = None,
        **members: Any,
    ) -> StepResult:
        step = Step(kind=StepKind.RENDER, payload=graph, **members)
        steps = (step,) * (index + 1)
        spec = await self.blobs.put(encode(JobSpec(kind="render", steps=steps, comfyui=comfyui)))
        step_input = StepInput(job_id=job_id, attempt=1, owner=owner, index=index, spec=spec)
        outcome = await self.environment.run(self.activities.render_step, step_input)
        assert isinstance(outcome, StepOutcome)
        return outcome.result


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ActivityHarness]:
    harness = ActivityHarness(tmp_path)
    await harness.database.ensure_schema()
    yield harness
    await harness.database.close()


async def test_retried_step_returns_the_same_result(harness: ActivityHarness) -> None:
    first_result, second_result = await harness.run_render(GRAPH), await harness.run_render(GRAPH)
    assert first_result == second_result
    assert first_result.backend == "comfyui-default-0"
    [artifact] = first_result.artifacts
    assert artifact.id == derive_step_artifact_id(JOB_ID, 0, 0)
    output = json.loads(await harness.blobs.get(first_result.output))
    assert output == {
        "text": None,
        "body": {"outputs": {"2": {"images": [f"artifact:{artifact.id}"]}}},
        "artifacts": [f"artifact:{artifact.id}"],
    }
    assert harness.renderer.started == [JOB_ID], "the second attempt found the result"


async def test_job_is_running_as_soon_as_comfyui_has_its_prompt(harness: ActivityHarness) -> None:
    harness.pool.remove_renderer("comfyui-default-0")
    harness.renderer.held.clear()
    render_task = asyncio.create_task(harness.run_render(GRAPH))
    await eventually(lambda: harness.pool.waiting_renders)
    assert harness.pool.list_places()[JOB_ID].position == 1
    assert not harness.steps.starts
    harness.pool.add_renderer("comfyui-default-0", harness.renderer, RendererStatus(ready=True))
    await eventually(lambda: harness.steps.starts)
    assert harness.pool.list_places()[JOB_ID].position is None
    assert not render_task.done()
    harness.renderer.held.set()
    await render_task
    assert harness.steps.starts == {0: 1}


async def test_job_with_a_cached_result_is_marked_as_started(harness: ActivityHarness) -> None:
    await store_file(harness)
    await harness.run_render(GRAPH)
    harness.steps.starts.clear()
    assert (await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)).cached
    assert harness.steps.starts == {0: 1}


async def test_files_of_other_nodes_are_left_out(harness: ActivityHarness) -> None:
    assert len((await harness.run_render(GRAPH, outputs=("2",))).artifacts) == 1
    result = await harness.run_render(GRAPH, outputs=("1",))
    assert result.artifacts == ()
    assert json.loads(await harness.blobs.get(result.output))["body"] == {"outputs": {}}


async def test_each_step_has_its_own_prompt_id(harness: ActivityHarness) -> None:
    await harness.run_render(GRAPH, index=1)
    assert harness.renderer.started == [derive_prompt_id(JOB_ID, 1)]
    assert derive_prompt_id(JOB_ID, 0) == JOB_ID
    assert (
        str(uuid.UUID(derive_prompt_id(JOB_ID, 1)))
        == derive_prompt_id(JOB_ID, 1)
        != derive_prompt_id(JOB_ID, 2)
    )


async def test_input_of_another_owner_is_not_found(harness: ActivityHarness) -> None:
    sha256 = await harness.blobs.put(b"png")
    artifact = Artifact(
        id=generate_artifact_id(), name="in.png", media_type="image/png", size=3, sha256=sha256
    )
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": f"artifact:{artifact.id}"}}}
    await harness.artifacts.add(artifact, owner="bob")
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_render(graph)
    assert (exc_info.value.type, exc_info.value.non_retryable) == ("artifact_not_found", True)
    assert harness.renderer.started == []

    own_artifact = Artifact(
        id=generate_artifact_id(), name="in.png", media_type="image/png", size=3, sha256=sha256
    )
    await harness.artifacts.add(own_artifact, owner="ann")
    graph["1"]["inputs"] = {"image": f"artifact:{own_artifact.id}"}
    await harness.run_render(graph)
    sent_request = harness.renderer.requests[JOB_ID]
    assert sent_request.files == {f"moyin/{sha256}.png": sha256}
    assert sent_request.graph["1"]["inputs"] == {"image": f"moyin/{sha256}.png"}


async def test_lost_renderer_is_retried_and_invalid_graph_is_not(harness: ActivityHarness) -> None:
    harness.renderer.failure = WorkerLost("gone")
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_render(GRAPH)
    assert (exc_info.value.type, exc_info.value.non_retryable) == ("worker_lost", False)
    harness.renderer.failure = InvalidGraph("no such node", details={"error": {}})
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_render(GRAPH)
    assert (exc_info.value.type, exc_info.value.non_retryable) == ("invalid_graph", True)


async def test_failure_counts_reach_the_next_attempt(harness: ActivityHarness) -> None:
    harness.renderer.failure = WorkerLost("status -9", details={"ended": "comfyui"})
    heartbeats: list[Any] = []
    harness.environment.on_heartbeat = lambda *details: heartbeats.append(details)
    with pytest.raises(ApplicationError) as exc_info:
        await harness.run_render(GRAPH)
    assert (exc_info.value.type, exc_info.value.non_retryable) == ("worker_lost", False)
    harness.environment.info = replace(harness.environment.info, heartbeat_details=heartbeats[-1])
    with pytest.raises(ApplicationError, match="status -9") as exc_info:
        await harness.run_render(GRAPH)
    assert (exc_info.value.type, exc_info.value.non_retryable) == ("render_poisoned", True)


async def test_internal_error_hides_its_message_and_is_retried_six_times(
    harness: ActivityHarness,
) -> None:
    harness.renderer.failure = ValueError("/secret/path")  # type: ignore[assignment]
    heartbeats: list[Any] = []
    harness.environment.on_heartbeat = lambda *details: heartbeats.append(details)
    non_retryable_flags = []
    for _ in range(6):
        with pytest.raises(ApplicationError) as exc_info:
            await harness.run_render(GRAPH)
        assert "secret" not in exc_info.value.message
        non_retryable_flags.append(exc_info.value.non_retryable)
        harness.environment.info = replace(
            harness.environment.info, heartbeat_details=heartbeats[-1]
        )
    assert non_retryable_flags == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("details", "status", "is_deleted", "is_prompt_cancelled"),
    [
        (ActivityCancellationDetails(cancel_requested=True), JobStatus.RUNNING, False, True),
        (ActivityCancellationDetails(not_found=True), JobStatus.CANCELLED, False, True),
        (ActivityCancellationDetails(not_found=True), JobStatus.CANCELLED, True, True),
        (ActivityCancellationDetails(not_found=True), JobStatus.RUNNING, False, False),
        (ActivityCancellationDetails(worker_shutdown=True), JobStatus.RUNNING, False, False),
        (ActivityCancellationDetails(timed_out=True), JobStatus.RUNNING, False, False),
    ],
)
async def test_only_a_final_cancellation_cancels_the_prompt(
    harness: ActivityHarness,
    details: ActivityCancellationDetails,
    status: JobStatus,
    is_deleted: bool,
    is_prompt_cancelled: bool,
) -> None:
    await harness.jobs.create(
        NewJob(
            id=JOB_ID,
            owner="ann",
            kind="render",
            spec="0" * 64,
            heads=((StepKind.RENDER, "default"),),
        )
    )
    harness.renderer.held.clear()
    task = asyncio.create_task(harness.run_render(GRAPH))
    await harness.renderer.busy.wait()
    if status.is_final:
        await harness.jobs.finish(JOB_ID, 1, status, None)
    if is_deleted:
        await harness.jobs.delete("ann", [JOB_ID])
    harness.environment.cancel(cancellation_details=details)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert harness.renderer.cancelled == ([JOB_ID] if is_prompt_cancelled else [])


@pytest.mark.parametrize("worker_dies", [False, True])
async def test_record_of_an_interrupted_prompt_is_stored(
    harness: ActivityHarness, monkeypatch: pytest.MonkeyPatch, worker_dies: bool
) -> None:
    async def fail() -> RendererStatus:
        raise WorkerLost("the actor died after the interruption")

    if worker_dies:
        monkeypatch.setattr(harness.renderer, "status", fail)
    await harness.jobs.create(
        NewJob(
            id=JOB_ID,
            owner="ann",
            kind="render",
            spec="0" * 64,
            heads=((StepKind.RENDER, "default"),),
        )
    )
    harness.renderer.interrupted = PromptRecord(
        outputs={}, meta={}, status="error", completed=False, messages=(("execution_start", {}),)
    )
    harness.renderer.held.clear()
    task = asyncio.create_task(harness.run_render(GRAPH))
    await harness.renderer.busy.wait()
    harness.environment.cancel(
        cancellation_details=ActivityCancellationDetails(cancel_requested=True)
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    record = (await harness.jobs.find(JOB_ID)).record
    assert record is not None
    stored_record = json.loads(await harness.blobs.get(record))["record"]
    assert from_plain(PromptRecord, stored_record) == harness.renderer.interrupted


async def test_waiting_step_sends_heartbeats(harness: ActivityHarness) -> None:
    """A step sends fewer heartbeats while it waits for a renderer than while it renders.

    Only lower bounds are checked: a loaded machine makes pauses longer, never shorter.
    """
    clock = asyncio.get_running_loop().time
    heartbeat_times: asyncio.Queue[float] = asyncio.Queue()
    harness.environment.on_heartbeat = lambda *_: heartbeat_times.put_nowait(clock())
    harness.pool.remove_renderer("comfyui-default-0")
    harness.renderer.held.clear()
    started_at = clock()
    task = asyncio.create_task(harness.run_render(GRAPH))
    async with asyncio.timeout(60):
        first_heartbeat = await heartbeat_times.get()
        assert first_heartbeat - started_at > 0.9, "a short step ends before its first heartbeat"
        second_heartbeat = await heartbeat_times.get()
        assert second_heartbeat - first_heartbeat > 1.9, (
            "one heartbeat every two seconds while it waits"
        )
        harness.pool.add_renderer("comfyui-default-0", harness.renderer, RendererStatus(ready=True))
        await harness.renderer.busy.wait()
        last_heartbeat = await heartbeat_times.get()
        # One heartbeat every second once the render begins.
        while (heartbeat := await heartbeat_times.get()) - last_heartbeat > 1.5:
            last_heartbeat = heartbeat
        harness.renderer.held.set()
        await task


OTHER_JOB_ID = "6f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3b"


async def store_file(harness: ActivityHarness) -> None:
    """Store the file that later results refer to."""
    stored_sha256 = await harness.blobs.put(b"png")
    harness.renderer.file = replace(harness.renderer.file, sha256=stored_sha256)


async def test_equal_graph_is_answered_from_the_cache(harness: ActivityHarness) -> None:
    await store_file(harness)
    first_result = await harness.run_render(GRAPH)
    # A node's title and the order of members change no picture.
    titled_graph = {
        "1": {"_meta": {"title": "x"}, "inputs": GRAPH["1"]["inputs"], "class_type": "LoadImage"}
    }
    second_result = await harness.run_render(titled_graph, job_id=OTHER_JOB_ID)
    assert harness.renderer.started == [JOB_ID]
    assert (first_result.cached, second_result.cached, second_result.backend) == (
        False,
        True,
        "cache",
    )
    [artifact] = second_result.artifacts
    assert artifact.id == derive_step_artifact_id(OTHER_JOB_ID, 0, 0)
    assert artifact.sha256 == first_result.artifacts[0].sha256
    body = json.loads(await harness.blobs.get(second_result.output))["body"]
    assert body == {"outputs": {"2": {"images": [f"artifact:{artifact.id}"]}}}
    # The files that are results differ between the two jobs.
    assert (await harness.run_render(GRAPH, job_id=OTHER_JOB_ID, outputs=("1",))).artifacts == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "bob"},
        {"cache": False},
        {"comfyui": ComfyPrompt()},
        {"graph": {"1": {"class_type": "LoadImage", "inputs": {"image": "y.png"}}}},
    ],
)
async def test_cached_result_is_not_used_for_other_owners_or_options(
    harness: ActivityHarness, changes: dict[str, Any]
) -> None:
    await store_file(harness)
    await harness.run_render(GRAPH)
    result = await harness.run_render(**{"graph": GRAPH, "job_id": OTHER_JOB_ID, **changes})
    assert (result.cached, harness.renderer.started) == (False, [JOB_ID, OTHER_JOB_ID])


async def test_unrepeatable_and_failed_renders_are_not_cached(harness: ActivityHarness) -> None:
    await store_file(harness)
    await harness.run_render(GRAPH, cache=False)
    harness.renderer.repeatable = False
    await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)
    harness.renderer.failure = InvalidGraph("no such node", details={"error": {}})
    with pytest.raises(ApplicationError):
        await harness.run_render(GRAPH, job_id=str(uuid.uuid4()))
    assert harness.cache.renders == {}


async def test_cached_result_is_renewed_when_it_is_used(
    harness: ActivityHarness, tmp_path: Path
) -> None:
    await store_file(harness)
    [artifact] = (await harness.run_render(GRAPH)).artifacts
    [path] = (tmp_path / "blobs").rglob(artifact.sha256)
    os.utime(path, (1, 1))
    assert (await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)).cached
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert await harness.blobs.delete(artifact.sha256, yesterday) is None


async def test_result_whose_file_is_gone_is_rendered_again(harness: ActivityHarness) -> None:
    await harness.run_render(GRAPH)  # the file of this result is not in the store
    assert len(harness.cache.renders) == 1
    assert not (await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)).cached
    assert harness.renderer.started == [JOB_ID, OTHER_JOB_ID]


async def create_job(harness: ActivityHarness) -> None:
    heads = ((StepKind.RENDER, "default"),)
    await harness.jobs.create(
        NewJob(id=JOB_ID, owner="ann", kind="render", spec="0" * 64, heads=heads, key_id="key_1")
    )


async def list_usage_entries(harness: ActivityHarness) -> list[UsageEntry]:
    calls, _ = await UsageReports(harness.database).list_calls(CallFilter(owner="ann"), limit=100)
    return calls


async def test_render_costs_its_time_and_a_repeated_activity_costs_nothing(
    harness: ActivityHarness,
) -> None:
    await create_job(harness)
    harness.renderer.seconds = 2.5
    results = [await harness.run_render(GRAPH), await harness.run_render(GRAPH)]
    # 36 US dollars per hour are one cent per second.
    assert [(r.cost_usd, r.gpu_seconds) for r in results] == [(Decimal("0.025"), 2.5)] * 2
    [row] = await list_usage_entries(harness)
    assert (row.request_id, row.backend, row.key_id) == (JOB_ID, "render-default", "key_1")
    assert (row.operation, row.unit, row.quantity) == ("render", "gpu_milliseconds", 2500)
    assert (row.cost_usd, row.complete) == (Decimal("0.025"), True)
    await harness.jobs.record_step(JOB_ID, 1, results[0])
    assert (await harness.jobs.find(JOB_ID)).cost_usd == Decimal("0.025")


async def test_estimates_follow_the_last_renders_of_a_graph(harness: ActivityHarness) -> None:
    await create_job(harness)
    harness.renderer.seconds = 2.5
    result = await harness.run_render(GRAPH)
    shape, price = compute_shape(GRAPH), RenderPrice(usd_per_gpu_hour=Decimal(36))
    assert harness.measurements.build_tariff(price, 60).estimate_cost(shape, 1) == Decimal("0.025")
    first_estimate = harness.measurements.estimate_duration(shape)
    assert first_estimate is not None and first_estimate.mean == 2.5
    # A restarted pool reads these from the job.
    assert (result.shape, result.pictures) == (shape, 1)
    # A repeated attempt sees the same run again.
    await harness.run_render(GRAPH)
    assert harness.measurements.estimate_duration(shape) == first_estimate


async def test_cached_and_failed_renders_are_not_measured(harness: ActivityHarness) -> None:
    await store_file(harness)
    harness.renderer.failure = RenderFailed("refused")
    with pytest.raises(ApplicationError):
        await harness.run_render(GRAPH)
    assert harness.measurements.estimate_any_shape() is None
    harness.renderer.failure, harness.renderer.seconds = None, 2.5
    await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)
    first_estimate = harness.measurements.estimate_any_shape()
    cached_result = await harness.run_render(GRAPH)
    assert (cached_result.cached, cached_result.shape, cached_result.pictures) == (True, None, None)
    assert harness.measurements.estimate_any_shape() == first_estimate is not None


async def test_failed_renders_cost_their_time(harness: ActivityHarness) -> None:
    await create_job(harness)
    harness.renderer.seconds = 1.0
    harness.renderer.failure = WorkerLost("gone")
    for _ in range(2):
        with pytest.raises(ApplicationError):
            await harness.run_render(GRAPH)
    harness.renderer.failure = None
    result = await harness.run_render(GRAPH)
    await harness.jobs.record_step(JOB_ID, 1, result)
    assert result.cost_usd == Decimal("0.01")
    assert (await harness.jobs.find(JOB_ID)).cost_usd == Decimal("0.03")
    rows = await list_usage_entries(harness)
    assert sorted(row.error or "" for row in rows) == ["", "worker_lost", "worker_lost"]


async def test_cancelled_render_is_booked_by_the_activity_that_cancels_it(
    harness: ActivityHarness,
) -> None:
    await create_job(harness)
    harness.renderer.held.clear()
    task = asyncio.create_task(harness.run_render(GRAPH))
    await harness.renderer.busy.wait()
    account = harness.renderer.requests[JOB_ID].account
    cancelled_run = RenderRun(
        id="1" * 32, prompt_id=JOB_ID, account=account, seconds=3.0, error="cancelled"
    )
    harness.renderer.runs = [
        cancelled_run,
        replace(cancelled_run, id="2" * 32, prompt_id=OTHER_JOB_ID),
    ]
    harness.environment.cancel(
        cancellation_details=ActivityCancellationDetails(cancel_requested=True)
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await harness.jobs.find(JOB_ID)).cost_usd == Decimal("0.03")
    [row] = await list_usage_entries(harness)
    assert row.status == "cancelled"


async def test_cached_result_costs_nothing(harness: ActivityHarness) -> None:
    await store_file(harness)
    harness.renderer.seconds = 2.0
    await harness.run_render(GRAPH)
    cached_result = await harness.run_render(GRAPH, job_id=OTHER_JOB_ID)
    assert (cached_result.cached, cached_result.cost_usd, cached_result.gpu_seconds) == (
        True,
        Decimal(0),
        0.0,
    )
    assert len(await list_usage_entries(harness)) == 1
