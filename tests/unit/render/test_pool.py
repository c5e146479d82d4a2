from __future__ import annotations

import asyncio
import uuid

import pytest

from deployments.render.pool import Pool
from moyin.comfyui.port import RenderDone, RenderProgress, RenderRequest
from moyin.errors import RenderFailed, ServiceUnavailable, WorkerLost
from moyin.scheduling.policy import Waiting
from moyin.testing.renderer import FakeRenderer


def request() -> RenderRequest:
    return RenderRequest(prompt_id=str(uuid.uuid4()), graph={"1": {}})


def render(
    pool: Pool, wanted: RenderRequest, progress: list[RenderProgress] | None = None
) -> asyncio.Task[tuple[str, RenderDone]]:
    waiting = Waiting(id=wanted.prompt_id, priority=3, arrived=0)
    seen = [] if progress is None else progress
    return asyncio.create_task(pool.render(wanted, waiting, seen.append))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def pool() -> Pool:
    return Pool("default")


async def test_a_render_goes_to_a_free_renderer_and_tells_its_progress(pool: Pool) -> None:
    pool.up("a", FakeRenderer(), [])
    seen: list[RenderProgress] = []
    name, done = await render(pool, request(), seen)
    assert (name, len(done.files), seen) == ("a", 1, [RenderProgress(value=0, max=1)])


async def test_each_renderer_has_one_render_at_a_time(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    for name, renderer in (("a", a), ("b", b)):
        renderer.held.clear()
        pool.up(name, renderer, [])
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
    pool.up("a", a, [])
    first = render(pool, wanted)
    await settle()
    # A new replica: it knows nothing but what the renderers tell.
    successor = Pool("default")
    successor.up("b", b, [])
    successor.up("a", a, [wanted.prompt_id])
    second = render(successor, wanted)
    await settle()
    a.held.set()
    assert (await first)[0] == (await second)[0] == "a"
    assert a.started == [wanted.prompt_id]
    assert b.started == []


async def test_what_an_earlier_replica_left_running_keeps_its_renderer(pool: Pool) -> None:
    a = FakeRenderer()
    pool.up("a", a, ["left-over"])
    task = render(pool, request())
    await settle()
    assert a.started == []
    pool.up("a", a, [])
    await task


async def test_a_stale_report_of_our_own_prompt_holds_up_nobody(pool: Pool) -> None:
    a = FakeRenderer()
    pool.up("a", a, [])
    wanted = request()
    await render(pool, wanted)
    pool.up("a", a, [wanted.prompt_id])
    async with asyncio.timeout(1):
        await render(pool, request())


async def test_cancel_goes_to_the_renderer_that_has_the_prompt(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    wanted = request()
    a.held.clear()
    pool.up("a", a, [])
    task = render(pool, wanted)
    await settle()
    pool.up("b", b, [])
    await pool.cancel(wanted.prompt_id)
    await pool.cancel("unknown")
    a.held.set()
    with pytest.raises(RenderFailed):
        await task
    assert (a.cancelled, b.cancelled) == ([wanted.prompt_id], [])


async def test_a_failed_render_frees_its_renderer(pool: Pool) -> None:
    a = FakeRenderer()
    a.failure = WorkerLost("gone")
    pool.up("a", a, [])
    with pytest.raises(WorkerLost):
        await render(pool, request())
    a.failure = None
    assert (await render(pool, request()))[0] == "a"


async def test_a_renderer_that_went_away_gets_nothing(pool: Pool) -> None:
    a, b = FakeRenderer(), FakeRenderer()
    pool.up("a", a, [])
    pool.down("a")
    task = render(pool, request())
    await settle()
    pool.up("b", b, [])
    assert (await task)[0] == "b"
    assert a.started == []


async def test_validation_needs_a_renderer(pool: Pool) -> None:
    with pytest.raises(ServiceUnavailable):
        await pool.validate({})
    a = FakeRenderer()
    a.invalid = {"error": {}}
    pool.up("a", a, [])
    assert await pool.validate({}) == {"error": {}}
    assert await pool.object_info() == {}
