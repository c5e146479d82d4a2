from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from deployments.render.guard import MemoryGuard
from deployments.render.pool import Pool
from moyin.domain.queue_place import QueuePlace
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.domain.renderer import (
    ExecutionFinished,
    RendererStatus,
    RenderEvent,
    RenderProgress,
    RenderRequest,
    RenderSucceeded,
)
from moyin.errors import (
    OutOfMemory,
    RenderFailed,
    ServiceUnavailable,
    WorkerLost,
)
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.render.scheduling.window import Window
from moyin.testing.renderer import FakeRenderer

ACCOUNT = RenderAccount(
    owner="ann", job_id="j", pool="p", price=RenderPrice(usd_per_gpu_hour=Decimal(1))
)


def make_request(
    models: dict[str, int] | None = None, files: dict[str, str] | None = None
) -> RenderRequest:
    return RenderRequest(
        prompt_id=str(uuid.uuid4()), graph={"1": {}}, models=models or {}, files=files or {}
    )


def start_render(
    pool: Pool,
    render_request: RenderRequest,
    progress: list[RenderProgress] | None = None,
    *,
    job_attempt: int = 1,
    job_id: str = "",
    is_retry: bool = False,
) -> asyncio.Task[tuple[str, RenderSucceeded]]:
    pending_render = PendingRender(
        id=render_request.prompt_id, job_id=job_id, priority=3, arrived=0,
        models=render_request.models,
    )  # fmt: skip
    received_progress = [] if progress is None else progress
    return asyncio.create_task(
        pool.render(
            render_request, pending_render, received_progress.append,
            job_attempt=job_attempt, is_retry=is_retry,
        )
    )  # fmt: skip


def make_status(*running_ids: str, models: tuple[str, ...] = ()) -> RendererStatus:
    return RendererStatus(ready=True, running=running_ids, models=models)


async def run_pending_tasks() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def pool() -> Pool:
    return Pool("default")


async def test_render_goes_to_a_free_renderer_and_reports_progress(pool: Pool) -> None:
    pool.add_renderer("a", FakeRenderer(), make_status())
    received_progress: list[RenderProgress] = []
    name, result = await start_render(pool, make_request(), received_progress)
    assert (name, len(result.files), received_progress) == (
        "a",
        1,
        [RenderProgress(value=0, max=1)],
    )


async def test_start_is_reported_by_first_and_attached_attempts(pool: Pool) -> None:
    renderer, render_request = FakeRenderer(), make_request()
    renderer.held.clear()
    started_attempts: list[str] = []

    def start_attempt(target_pool: Pool, name: str, *, is_retry: bool) -> asyncio.Task[Any]:
        pending_render = PendingRender(
            id=render_request.prompt_id, job_id="job", priority=3, arrived=0
        )
        return asyncio.create_task(
            target_pool.render(
                render_request,
                pending_render,
                lambda _: None,
                on_start=lambda: started_attempts.append(name),
                is_retry=is_retry,
            )
        )

    first_attempt = start_attempt(pool, "first", is_retry=False)
    await run_pending_tasks()
    assert (started_attempts, pool.list_places()) == ([], {"job": QueuePlace(position=1)})
    pool.add_renderer("a", renderer, make_status())
    await run_pending_tasks()
    assert (started_attempts, pool.list_places()) == (["first"], {"job": QueuePlace()})
    # A new replica may be the one that writes the start.
    successor = Pool("default")
    successor.add_renderer("a", renderer, make_status(render_request.prompt_id))
    second_attempt = start_attempt(successor, "second", is_retry=True)
    await run_pending_tasks()
    assert started_attempts == ["first", "second"]
    renderer.held.set()
    await asyncio.gather(first_attempt, second_attempt)
    assert started_attempts == ["first", "second"]


async def test_batch_has_the_position_of_its_first_waiting_render(pool: Pool) -> None:
    tasks = []
    for arrival, job_id in enumerate(["batch", "batch", "other", "batch"]):
        render_request = make_request()
        pending_render = PendingRender(
            id=render_request.prompt_id, job_id=job_id, priority=3, arrived=arrival
        )
        tasks.append(
            asyncio.create_task(pool.render(render_request, pending_render, lambda _: None))
        )
    await run_pending_tasks()
    assert pool.list_places() == {
        "batch": QueuePlace(position=1),
        "other": QueuePlace(position=3),
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_renderer_has_one_render_at_a_time(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    for name, renderer in (("a", first_renderer), ("b", second_renderer)):
        renderer.held.clear()
        pool.add_renderer(name, renderer, make_status())
    tasks = [start_render(pool, make_request()) for _ in range(5)]
    await run_pending_tasks()
    assert (len(first_renderer.started), len(second_renderer.started), pool.waiting_renders) == (
        1,
        1,
        3,
    )
    first_renderer.held.set()
    second_renderer.held.set()
    await asyncio.gather(*tasks)
    assert len(first_renderer.started) + len(second_renderer.started) == 5


async def test_retry_attaches_to_the_prompt_on_its_renderer(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    render_request = make_request()
    first_renderer.held.clear()
    pool.add_renderer("a", first_renderer, make_status())
    first_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    # A new replica knows only what the renderers report.
    successor = Pool("default")
    successor.add_renderer("b", second_renderer, make_status())
    successor.add_renderer("a", first_renderer, make_status(render_request.prompt_id))
    second_attempt = start_render(successor, render_request, is_retry=True)
    await run_pending_tasks()
    first_renderer.held.set()
    assert (await first_attempt)[0] == (await second_attempt)[0] == "a"
    assert first_renderer.started == [render_request.prompt_id]
    assert second_renderer.started == []


async def test_prompt_of_an_earlier_replica_keeps_its_renderer_busy(pool: Pool) -> None:
    renderer = FakeRenderer()
    pool.add_renderer("a", renderer, make_status("left-over"))
    task = start_render(pool, make_request())
    await run_pending_tasks()
    assert renderer.started == []
    pool.add_renderer("a", renderer, make_status())
    await task


async def test_attached_renderer_gets_no_other_render_until_it_has_ended(pool: Pool) -> None:
    renderer, render_request = FakeRenderer(), make_request()
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    first_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    successor = Pool("default")
    successor.add_renderer("a", renderer, make_status(render_request.prompt_id))
    second_attempt = start_render(successor, render_request, is_retry=True)
    await run_pending_tasks()
    # The actor reports its status every second.
    successor.add_renderer("a", renderer, make_status(render_request.prompt_id))
    other_render = start_render(successor, make_request())
    await run_pending_tasks()
    assert renderer.started == [render_request.prompt_id]
    renderer.held.set()
    await asyncio.gather(first_attempt, second_attempt)
    successor.add_renderer("a", renderer, make_status())
    async with asyncio.timeout(1):
        await other_render


async def test_abandoned_prompt_keeps_its_renderer_busy(pool: Pool) -> None:
    renderer, render_request = FakeRenderer(), make_request()
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    abandoned_render = start_render(pool, render_request)
    await run_pending_tasks()
    abandoned_render.cancel()
    await asyncio.gather(abandoned_render, return_exceptions=True)
    pool.add_renderer("a", renderer, make_status(render_request.prompt_id))
    other_render = start_render(pool, make_request())
    await run_pending_tasks()
    pool.add_renderer("a", renderer, make_status(render_request.prompt_id))
    await run_pending_tasks()
    assert renderer.started == [render_request.prompt_id]
    assert pool.abandoned_renderers == {"a"}
    retry = start_render(pool, render_request, is_retry=True)
    await run_pending_tasks()
    renderer.held.set()
    await retry
    assert pool.abandoned_renderers == frozenset()
    pool.add_renderer("a", renderer, make_status(render_request.prompt_id))
    async with asyncio.timeout(1):
        await other_render


async def test_abandoned_prompt_is_remembered_however_many_end_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.render.pool._REMEMBERED_PROMPTS", 2)
    pool, first_renderer, second_renderer, render_request = (
        Pool("default"),
        FakeRenderer(),
        FakeRenderer(),
        make_request(),
    )
    first_renderer.held.clear()
    pool.add_renderer("a", first_renderer, make_status())
    abandoned_render = start_render(pool, render_request)
    await run_pending_tasks()
    abandoned_render.cancel()
    await asyncio.gather(abandoned_render, return_exceptions=True)
    pool.add_renderer("b", second_renderer, make_status())
    pool.add_renderer("a", first_renderer, make_status(render_request.prompt_id))
    for _ in range(5):
        assert (await start_render(pool, make_request()))[0] == "b"
    assert pool.abandoned_renderers == {"a"}
    first_renderer.held.set()
    assert (await start_render(pool, render_request, is_retry=True))[0] == "a"
    assert pool.abandoned_renderers == frozenset()


async def test_stale_status_of_a_finished_prompt_delays_no_render(pool: Pool) -> None:
    renderer = FakeRenderer()
    pool.add_renderer("a", renderer, make_status())
    render_request = make_request()
    await start_render(pool, render_request)
    pool.add_renderer("a", renderer, make_status(render_request.prompt_id))
    async with asyncio.timeout(1):
        await start_render(pool, make_request())


async def test_cancellation_goes_to_the_renderer_of_the_prompt(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    render_request = make_request()
    first_renderer.held.clear()
    pool.add_renderer("a", first_renderer, make_status())
    task = start_render(pool, render_request)
    await run_pending_tasks()
    pool.add_renderer("b", second_renderer, make_status())
    await pool.cancel(render_request.prompt_id, 1)
    await pool.cancel("unknown", 1)
    first_renderer.held.set()
    with pytest.raises(RenderFailed):
        await task
    assert (first_renderer.cancelled, second_renderer.cancelled) == ([render_request.prompt_id], [])


async def test_late_cancellation_spares_the_render_that_a_retry_follows(pool: Pool) -> None:
    """The retry takes over the running render, which the late cancellation must then not end."""
    renderer, render_request = FakeRenderer(), make_request()
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    cancelled_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    cancelled_attempt.cancel()
    await asyncio.gather(cancelled_attempt, return_exceptions=True)
    retry = start_render(pool, render_request, job_attempt=2)
    await run_pending_tasks()
    await pool.cancel(render_request.prompt_id, 1)
    assert renderer.cancelled == []
    renderer.held.set()
    assert (await retry)[0] == "a"
    assert renderer.started == [render_request.prompt_id]


async def test_retry_after_the_cancellation_waits_for_its_turn(pool: Pool) -> None:
    """The retry queues like any render; it does not take over the cancelled run, which is ending."""
    renderer, render_request = FakeRenderer(), make_request()
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    cancelled_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    cancelled_attempt.cancel()
    await asyncio.gather(cancelled_attempt, return_exceptions=True)
    # As the actor reports it while ComfyUI still ends the prompt.
    pool.add_renderer("a", renderer, make_status(render_request.prompt_id))
    waiting_render = start_render(pool, make_request(), job_id="waiting")
    await pool.cancel(render_request.prompt_id, 1)
    retry = start_render(pool, render_request, job_attempt=2, job_id="retried")
    await run_pending_tasks()
    places = pool.list_places()
    assert sorted(places[job_id].position or 0 for job_id in ("waiting", "retried")) == [1, 2]
    for task in (waiting_render, retry):
        task.cancel()
    await asyncio.gather(waiting_render, retry, return_exceptions=True)


async def test_failed_render_frees_its_renderer(pool: Pool) -> None:
    renderer = FakeRenderer()
    renderer.failure = WorkerLost("gone")
    pool.add_renderer("a", renderer, make_status())
    with pytest.raises(WorkerLost):
        await start_render(pool, make_request())
    renderer.failure = None
    assert (await start_render(pool, make_request()))[0] == "a"


async def test_removed_renderer_gets_no_render(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    pool.add_renderer("a", first_renderer, make_status())
    pool.remove_renderer("a")
    task = start_render(pool, make_request())
    await run_pending_tasks()
    pool.add_renderer("b", second_renderer, make_status())
    assert (await task)[0] == "b"
    assert first_renderer.started == []


async def test_prompt_is_executed_before_its_files_are_stored(pool: Pool) -> None:
    renderer, files_are_stored = FakeRenderer(), asyncio.Event()
    original_render = renderer.render

    async def render_slowly(request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        async for event in original_render(request):
            yield event
            if isinstance(event, ExecutionFinished):
                await files_are_stored.wait()

    renderer.render = render_slowly  # type: ignore[method-assign]
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    render_request = make_request()
    task = start_render(pool, render_request)
    await run_pending_tasks()
    assert pool.find_executed([render_request.prompt_id]) == []
    renderer.held.set()
    await run_pending_tasks()
    assert pool.find_executed([render_request.prompt_id, "other"]) == [render_request.prompt_id]
    files_are_stored.set()
    await task
    assert pool.find_executed([render_request.prompt_id]) == [render_request.prompt_id], (
        "its row has yet to be written"
    )
    # Another attempt at the same job is another execution.
    renderer.held.clear()
    second_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    assert pool.find_executed([render_request.prompt_id]) == []
    renderer.held.set()
    await second_attempt


async def test_prompt_that_waits_for_another_execution_is_not_executed(pool: Pool) -> None:
    pool.add_renderer("a", FakeRenderer(), make_status())
    render_request = make_request()
    await start_render(pool, render_request)
    assert pool.find_executed([render_request.prompt_id]) == [render_request.prompt_id]
    # Files that were not stored yet are lost with the renderer.
    pool.remove_renderer("a")
    retry = start_render(pool, render_request, is_retry=True)
    await run_pending_tasks()
    assert (pool.waiting_renders, pool.find_executed([render_request.prompt_id])) == (1, [])
    pool.add_renderer("b", FakeRenderer(), make_status())
    await retry


async def test_closed_pool_rejects_waiting_renders_and_finishes_the_others(
    pool: Pool,
) -> None:
    renderer = FakeRenderer()
    renderer.held.clear()
    pool.add_renderer("a", renderer, make_status())
    running_render, waiting_render = (
        start_render(pool, make_request()),
        start_render(pool, make_request()),
    )
    await run_pending_tasks()
    pool.close()
    with pytest.raises(ServiceUnavailable):
        await waiting_render
    with pytest.raises(ServiceUnavailable):
        await start_render(pool, make_request())
    renderer.held.set()
    await running_render
    assert (len(renderer.started), pool.waiting_renders) == (1, 0)


async def test_get_fails_without_a_renderer(pool: Pool) -> None:
    with pytest.raises(ServiceUnavailable):
        await pool.get("/models")
    renderer = FakeRenderer()
    renderer.bodies["/models"] = b"[]"
    pool.add_renderer("a", renderer, make_status())
    assert await pool.get("/models") == b"[]"
    assert await pool.get_all("/models") == {"a": b"[]"}


async def test_render_goes_to_the_renderer_with_its_models(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    pool.add_renderer("a", first_renderer, make_status(models=("checkpoints/ink",)))
    pool.add_renderer("b", second_renderer, make_status(models=("checkpoints/oil",)))
    for name, model in (("a", "ink"), ("b", "oil"), ("b", "oil"), ("a", "ink"), ("a", "ink")):
        assert (await start_render(pool, make_request({f"checkpoints/{model}": 10**9})))[0] == name


async def test_two_waiting_attempts_render_once(pool: Pool) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    render_request = make_request()
    first_attempt, second_attempt = (
        start_render(pool, render_request),
        start_render(pool, render_request, is_retry=True),
    )
    await run_pending_tasks()
    for name, renderer in (("a", first_renderer), ("b", second_renderer)):
        renderer.held.clear()
        pool.add_renderer(name, renderer, make_status())
    await run_pending_tasks()
    assert len(first_renderer.started) + len(second_renderer.started) == 1
    # The other renderer is free for other renders.
    other_render = start_render(pool, make_request())
    await run_pending_tasks()
    assert len(first_renderer.started) + len(second_renderer.started) == 2
    first_renderer.held.set()
    second_renderer.held.set()
    assert (await first_attempt)[0] == (await second_attempt)[0]
    await other_render


async def test_retry_waits_until_earlier_renderers_have_been_seen(
    pool: Pool,
) -> None:
    first_renderer, second_renderer = FakeRenderer(), FakeRenderer()
    render_request = make_request()
    first_renderer.held.clear()
    pool.add_renderer("a", first_renderer, make_status())
    first_attempt = start_render(pool, render_request)
    await run_pending_tasks()
    successor = Pool("default")
    successor.settled.clear()
    successor.add_renderer("b", second_renderer, make_status())
    second_attempt = start_render(successor, render_request, is_retry=True)
    await run_pending_tasks()
    assert second_renderer.started == []
    successor.add_renderer("a", first_renderer, make_status(render_request.prompt_id))
    successor.settled.set()
    first_renderer.held.set()
    assert (await first_attempt)[0] == (await second_attempt)[0] == "a"
    assert second_renderer.started == []


async def test_inputs_of_the_next_render_are_fetched_early(
    pool: Pool,
) -> None:
    renderer = FakeRenderer()
    renderer.held.clear()
    files = [{f"moyin/{n}.png": n} for n in "123"]
    requests = [make_request(files=f) for f in files]
    tasks = [start_render(pool, render_request) for render_request in requests]
    await run_pending_tasks()
    pool.add_renderer("a", renderer, make_status())
    await run_pending_tasks()
    assert len(renderer.started) == 1
    assert len(renderer.prepared) == 1
    assert renderer.prepared[0] != renderer.started[0]
    renderer.held.set()
    await asyncio.gather(*tasks)
    assert renderer.started[1] == renderer.prepared[0]


async def test_models_that_ran_out_of_memory_go_to_the_larger_pool() -> None:
    pool = Pool("small", memory=MemoryGuard("large"))
    renderer = FakeRenderer()
    renderer.failure = OutOfMemory("node 3 failed", details={"node_id": "3"})
    pool.add_renderer("a", renderer, make_status())
    models = {"checkpoints/big": 10**9}
    with pytest.raises(OutOfMemory) as exc_info:
        await start_render(pool, make_request(models))
    assert exc_info.value.details == {"node_id": "3", "pool": "large"}
    with pytest.raises(OutOfMemory) as exc_info:
        await start_render(pool, make_request(models))
    assert exc_info.value.details["pool"] == "large"
    assert len(renderer.started) == 1, "the second was not sent to a renderer"
    renderer.failure = None
    await start_render(pool, make_request({"checkpoints/other": 10**9}))


async def test_too_large_models_go_to_the_larger_pool_at_once() -> None:
    models = {"checkpoints/big": 10 * 10**9}
    for larger_pool in ("large", None):
        pool = Pool("small", memory=MemoryGuard(larger_pool))
        pool.add_renderer("a", FakeRenderer(), RendererStatus(ready=True, memory=8 * 10**9))
        if larger_pool is None:
            await start_render(pool, make_request(models))
            continue
        with pytest.raises(OutOfMemory):
            await start_render(pool, make_request(models))


async def test_runs_reach_the_caller_also_after_a_failure_and_from_a_removed_renderer(
    pool: Pool,
) -> None:
    renderer, render_request = FakeRenderer(), replace(make_request(), account=ACCOUNT)
    pool.add_renderer("a", renderer, make_status())
    pending_render = PendingRender(id=render_request.prompt_id, priority=3, arrived=0)
    runs: list[RenderRun] = []
    renderer.failure = RenderFailed("a node failed")
    with pytest.raises(RenderFailed):
        await pool.render(render_request, pending_render, lambda _: None, on_run=runs.append)
    assert [run.error for run in runs] == ["render_failed"]
    assert await pool.find_ended_runs(render_request.prompt_id) == runs
    assert await pool.find_ended_runs(str(uuid.uuid4())) == []

    renderer.failure = None
    await pool.render(render_request, pending_render, lambda _: None, on_run=runs.append)
    pool.inherit_results("a", await renderer.results())
    pool.remove_renderer("a")
    await pool.render(
        render_request, pending_render, lambda _: None, on_run=runs.append, is_retry=True
    )
    assert [run.error for run in runs] == ["render_failed", None, None]
    assert runs[1] == runs[2]


async def test_unknown_event_of_a_later_version_is_not_the_result(pool: Pool) -> None:
    class LaterRenderer(FakeRenderer):
        async def render(self, request: RenderRequest) -> AsyncGenerator[Any, None]:
            yield object()
            async for event in super().render(request):
                yield event

    renderer = LaterRenderer()
    pool.add_renderer("a", renderer, make_status())
    assert (await start_render(pool, make_request()))[1].files == (renderer.file,)


async def test_successful_renders_are_measured_once() -> None:
    window = Window()
    pool, renderer = Pool("default", RenderScheduler(window)), FakeRenderer()
    renderer.seconds = 4.0
    pool.add_renderer("a", renderer, make_status())
    render_request = make_request({"m": 5_000_000_000})
    await start_render(pool, render_request)
    first_estimate = window.measurements.estimate_duration("")
    assert first_estimate is not None and first_estimate.mean == 4.0
    await start_render(pool, render_request, is_retry=True)
    assert window.measurements.estimate_duration("") == first_estimate, (
        "the second attempt found the same run"
    )
    renderer.seconds = 8.0
    await start_render(pool, make_request())
    estimate_of_both = window.measurements.estimate_duration("")
    assert estimate_of_both is not None and estimate_of_both.mean == 6.0


async def test_results_of_removed_renderers_are_measured() -> None:
    window = Window()
    pool, renderer, render_request = (
        Pool("default", RenderScheduler(window)),
        FakeRenderer(),
        make_request(),
    )
    renderer.seconds = 4.0
    async for _ in renderer.render(render_request):
        pass
    pool.inherit_results("a", await renderer.results())
    await start_render(pool, render_request, is_retry=True)
    estimate = window.measurements.estimate_any_shape()
    assert estimate is not None and estimate.mean == 4.0


async def test_failed_and_cancelled_renders_are_not_measured() -> None:
    window = Window()
    pool, renderer = Pool("default", RenderScheduler(window)), FakeRenderer()
    renderer.seconds, renderer.failure = 4.0, RenderFailed("refused")
    pool.add_renderer("a", renderer, make_status())
    with pytest.raises(RenderFailed):
        await start_render(pool, make_request())
    renderer.failure = None
    renderer.held.clear()
    task = start_render(pool, make_request())
    await run_pending_tasks()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert window.measurements.estimate_any_shape() is None
