from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator

import pytest

from deployments.render.memory import MemoryGuard
from deployments.render.pool import Pool
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
from moyin.render.scheduling.policy import PendingRender
from moyin.testing.renderer import FakeRenderer


def request(
    models: dict[str, int] | None = None, files: dict[str, str] | None = None
) -> RenderRequest:
    return RenderRequest(
        prompt_id=str(uuid.uuid4()), graph={"1": {}}, models=models or {}, files=files or {}
    )


def render(
    pool: Pool,
    wanted: RenderRequest,
    progress: list[RenderProgress] | None = None,
    *,
    repeated: bool = False,
) -> asyncio.Task[tuple[str, RenderSucceeded]]:
    waiting = PendingRender(id=wanted.prompt_id, priority=3, arrived=0, models=wanted.models)
    seen = [] if progress is None else progress
    return asyncio.create_task(pool.render(wanted, waiting, seen.append, repeated=repeated))


def status(*running: str, models: tuple[str, ...] = ()) -> RendererStatus:
    return RendererStatus(ready=True, running=running, models=models)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def pool() -> Pool:
    return Pool("default")


async def test_a_render_goes_to_a_free_renderer_and_tells_its_progress(pool: Pool) -> None:
    pool.up("a", FakeRenderer(), status())
    seen: list[RenderProgress] = []
    name, done = await render(pool, request(), seen)
    assert (name, len(done.files), seen) == ("a", 1, [RenderProgress(value=0, max=1)])


async def test_each_renderer_has_one_render_at_a_time(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    for name, renderer in (("a", a), ("b", b)):
        renderer.held.clear()
        pool.up(name, renderer, status())
    tasks = [render(pool, request()) for _ in range(5)]
    await settle()
    assert (len(a.started), len(b.started), pool.waiting) == (1, 1, 3)
    a.held.set()
    b.held.set()
    await asyncio.gather(*tasks)
    assert len(a.started) + len(b.started) == 5


async def test_a_repeat_attaches_to_the_prompt_wherever_it_is(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    wanted = request()
    a.held.clear()
    pool.up("a", a, status())
    first = render(pool, wanted)
    await settle()
    # A new replica: it knows nothing but what the renderers tell.
    successor = Pool("default")
    successor.up("b", b, status())
    successor.up("a", a, status(wanted.prompt_id))
    second = render(successor, wanted, repeated=True)
    await settle()
    a.held.set()
    assert (await first)[0] == (await second)[0] == "a"
    assert a.started == [wanted.prompt_id]
    assert b.started == []


async def test_what_an_earlier_replica_left_running_keeps_its_renderer(pool: Pool) -> None:
    a = FakeRenderer()
    pool.up("a", a, status("left-over"))
    task = render(pool, request())
    await settle()
    assert a.started == []
    pool.up("a", a, status())
    await task


async def test_who_is_attached_to_gets_nothing_else_until_it_has_ended(pool: Pool) -> None:
    a, wanted = FakeRenderer(), request()
    a.held.clear()
    pool.up("a", a, status())
    first = render(pool, wanted)
    await settle()
    successor = Pool("default")
    successor.up("a", a, status(wanted.prompt_id))
    repeat = render(successor, wanted, repeated=True)
    await settle()
    # As its actor reports every second.
    successor.up("a", a, status(wanted.prompt_id))
    other = render(successor, request())
    await settle()
    assert a.started == [wanted.prompt_id]
    a.held.set()
    await asyncio.gather(first, repeat)
    successor.up("a", a, status())
    async with asyncio.timeout(1):
        await other


async def test_a_prompt_that_its_watcher_has_left_keeps_its_renderer(pool: Pool) -> None:
    a, wanted = FakeRenderer(), request()
    a.held.clear()
    pool.up("a", a, status())
    watching = render(pool, wanted)
    await settle()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    pool.up("a", a, status(wanted.prompt_id))
    other = render(pool, request())
    await settle()
    pool.up("a", a, status(wanted.prompt_id))
    await settle()
    assert a.started == [wanted.prompt_id]
    assert pool.left == {"a"}
    again = render(pool, wanted, repeated=True)
    await settle()
    a.held.set()
    await again
    assert pool.left == frozenset()
    pool.up("a", a, status(wanted.prompt_id))
    async with asyncio.timeout(1):
        await other


async def test_a_stale_report_of_our_own_prompt_holds_up_nobody(pool: Pool) -> None:
    a = FakeRenderer()
    pool.up("a", a, status())
    wanted = request()
    await render(pool, wanted)
    pool.up("a", a, status(wanted.prompt_id))
    async with asyncio.timeout(1):
        await render(pool, request())


async def test_cancel_goes_to_the_renderer_that_has_the_prompt(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    wanted = request()
    a.held.clear()
    pool.up("a", a, status())
    task = render(pool, wanted)
    await settle()
    pool.up("b", b, status())
    await pool.cancel(wanted.prompt_id)
    await pool.cancel("unknown")
    a.held.set()
    with pytest.raises(RenderFailed):
        await task
    assert (a.cancelled, b.cancelled) == ([wanted.prompt_id], [])


async def test_a_failed_render_frees_its_renderer(pool: Pool) -> None:
    a = FakeRenderer()
    a.failure = WorkerLost("gone")
    pool.up("a", a, status())
    with pytest.raises(WorkerLost):
        await render(pool, request())
    a.failure = None
    assert (await render(pool, request()))[0] == "a"


async def test_a_renderer_that_went_away_gets_nothing(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    pool.up("a", a, status())
    pool.down("a")
    task = render(pool, request())
    await settle()
    pool.up("b", b, status())
    assert (await task)[0] == "b"
    assert a.started == []


async def test_what_is_executed_is_known_before_its_files_are_stored(pool: Pool) -> None:
    a, stored = FakeRenderer(), asyncio.Event()
    told = a.render

    async def slowly(asked: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        async for event in told(asked):
            yield event
            if isinstance(event, ExecutionFinished):
                await stored.wait()

    a.render = slowly  # type: ignore[method-assign]
    a.held.clear()
    pool.up("a", a, status())
    wanted = request()
    task = render(pool, wanted)
    await settle()
    assert pool.executed([wanted.prompt_id]) == []
    a.held.set()
    await settle()
    assert pool.executed([wanted.prompt_id, "other"]) == [wanted.prompt_id]
    stored.set()
    await task
    assert pool.executed([wanted.prompt_id]) == [wanted.prompt_id], "its row is still to be written"
    # Another attempt of the same job is another execution.
    a.held.clear()
    again = render(pool, wanted)
    await settle()
    assert pool.executed([wanted.prompt_id]) == []
    a.held.set()
    await again


async def test_what_waits_to_be_executed_again_is_not_executed(pool: Pool) -> None:
    pool.up("a", FakeRenderer(), status())
    wanted = request()
    await render(pool, wanted)
    assert pool.executed([wanted.prompt_id]) == [wanted.prompt_id]
    # What it had not stored yet is lost with it.
    pool.down("a")
    again = render(pool, wanted, repeated=True)
    await settle()
    assert (pool.waiting, pool.executed([wanted.prompt_id])) == (1, [])
    pool.up("b", FakeRenderer(), status())
    await again


async def test_a_pool_that_closes_begins_nothing_more_and_ends_what_it_has_begun(
    pool: Pool,
) -> None:
    a = FakeRenderer()
    a.held.clear()
    pool.up("a", a, status())
    begun, waiting = render(pool, request()), render(pool, request())
    await settle()
    pool.close()
    with pytest.raises(ServiceUnavailable):
        await waiting
    with pytest.raises(ServiceUnavailable):
        await render(pool, request())
    a.held.set()
    await begun
    assert (len(a.started), pool.waiting) == (1, 0)


async def test_validation_needs_a_renderer(pool: Pool) -> None:
    with pytest.raises(ServiceUnavailable):
        await pool.validate({})
    a = FakeRenderer()
    a.invalid = {"error": {}}
    pool.up("a", a, status())
    assert await pool.validate({}) == {"error": {}}
    assert await pool.object_info() == {}


async def test_a_render_goes_to_the_renderer_that_has_its_models(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    pool.up("a", a, status(models=("checkpoints/ink",)))
    pool.up("b", b, status(models=("checkpoints/oil",)))
    for name, model in (("a", "ink"), ("b", "oil"), ("b", "oil"), ("a", "ink"), ("a", "ink")):
        assert (await render(pool, request({f"checkpoints/{model}": 10**9})))[0] == name


async def test_two_attempts_of_a_render_that_wait_side_by_side_are_one_render(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    wanted = request()
    first, second = render(pool, wanted), render(pool, wanted, repeated=True)
    await settle()
    for name, renderer in (("a", a), ("b", b)):
        renderer.held.clear()
        pool.up(name, renderer, status())
    await settle()
    assert len(a.started) + len(b.started) == 1
    # The other renderer is free for others meanwhile.
    third = render(pool, request())
    await settle()
    assert len(a.started) + len(b.started) == 2
    a.held.set()
    b.held.set()
    assert (await first)[0] == (await second)[0]
    await third


async def test_a_repeat_waits_until_the_renderers_of_an_earlier_pool_have_been_seen(
    pool: Pool,
) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    wanted = request()
    a.held.clear()
    pool.up("a", a, status())
    first = render(pool, wanted)
    await settle()
    successor = Pool("default")
    successor.settled.clear()
    successor.up("b", b, status())
    second = render(successor, wanted, repeated=True)
    await settle()
    assert b.started == []
    successor.up("a", a, status(wanted.prompt_id))
    successor.settled.set()
    a.held.set()
    assert (await first)[0] == (await second)[0] == "a"
    assert b.started == []


async def test_the_inputs_of_the_next_render_are_fetched_during_the_present_one(
    pool: Pool,
) -> None:
    a = FakeRenderer()
    a.held.clear()
    files = [{f"moyin/{n}.png": n} for n in "123"]
    requests = [request(files=f) for f in files]
    tasks = [render(pool, wanted) for wanted in requests]
    await settle()
    pool.up("a", a, status())
    await settle()
    assert len(a.started) == 1
    assert len(a.prepared) == 1
    assert a.prepared[0] != a.started[0]
    a.held.set()
    await asyncio.gather(*tasks)
    assert a.started[1] == a.prepared[0]


async def test_what_ran_out_of_memory_goes_to_the_larger_pool_from_then_on() -> None:
    pool = Pool("small", memory=MemoryGuard("large"))
    a = FakeRenderer()
    a.failure = OutOfMemory("node 3 failed", details={"node_id": "3"})
    pool.up("a", a, status())
    models = {"checkpoints/big": 10**9}
    with pytest.raises(OutOfMemory) as caught:
        await render(pool, request(models))
    assert caught.value.details == {"node_id": "3", "pool": "large"}
    with pytest.raises(OutOfMemory) as caught:
        await render(pool, request(models))
    assert caught.value.details["pool"] == "large"
    assert len(a.started) == 1, "the second was not even tried"
    a.failure = None
    await render(pool, request({"checkpoints/other": 10**9}))


async def test_what_cannot_fit_goes_to_the_larger_pool_at_once() -> None:
    models = {"checkpoints/big": 10 * 10**9}
    for larger in ("large", None):
        pool = Pool("small", memory=MemoryGuard(larger))
        pool.up("a", FakeRenderer(), RendererStatus(ready=True, memory=8 * 10**9))
        if larger is None:
            await render(pool, request(models))
            continue
        with pytest.raises(OutOfMemory):
            await render(pool, request(models))
