from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from moyin.errors import ServiceUnavailable
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.scheduler import Lease, RenderScheduler


def make_render(
    name: str, priority: int = 3, arrived: float = 0, signatures: Collection[int] = ()
) -> PendingRender:
    return PendingRender(
        id=name, priority=priority, arrived=arrived, signatures=frozenset(signatures)
    )


class Harness:
    """Starts renders that hold their lease until `finish` is called."""

    def __init__(self, scheduler: RenderScheduler) -> None:
        self.scheduler = scheduler
        self.assignments: list[tuple[str, str]] = []
        self.leases: dict[str, Lease] = {}
        self._ends: dict[str, asyncio.Event] = {}

    def start(self, render: PendingRender) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(render))

    def finish(self, name: str) -> None:
        self._ends[name].set()

    async def _run(self, render: PendingRender) -> None:
        self._ends[render.id] = asyncio.Event()
        async with self.scheduler.lease(render) as lease:
            self.assignments.append((render.id, lease.name))
            self.leases[render.id] = lease
            await self._ends[render.id].wait()


async def run_pending_tasks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def harness() -> Harness:
    return Harness(RenderScheduler())


async def test_renders_run_one_at_a_time_by_priority_then_arrival(harness: Harness) -> None:
    tasks = [
        harness.start(make_render("late", arrived=2)),
        harness.start(make_render("early", arrived=1)),
        harness.start(make_render("urgent", priority=1, arrived=3)),
    ]
    await run_pending_tasks()
    assert (harness.assignments, harness.scheduler.waiting_count) == ([], 3)
    harness.scheduler.add_renderer("a")
    for expected_name in ("urgent", "early", "late"):
        await run_pending_tasks()
        assert harness.assignments[-1] == (expected_name, "a")
        assert len(harness.assignments) == 3 - harness.scheduler.waiting_count
        harness.finish(expected_name)
    await asyncio.gather(*tasks)


async def test_early_release_lets_the_next_render_begin(harness: Harness) -> None:
    harness.scheduler.add_renderer("a")
    tasks = [harness.start(make_render("1", arrived=1)), harness.start(make_render("2", arrived=2))]
    await run_pending_tasks()
    harness.leases["1"].release()
    await run_pending_tasks()
    assert [render for render, _ in harness.assignments] == ["1", "2"]
    # The end of its block must not release the lease of the next render.
    harness.finish("1")
    third_task = harness.start(make_render("3", arrived=3))
    await run_pending_tasks()
    assert harness.scheduler.waiting_count == 1
    harness.finish("2")
    await run_pending_tasks()
    harness.finish("3")
    await asyncio.gather(*tasks, third_task)


async def test_renderer_that_was_free_longest_comes_first(harness: Harness) -> None:
    harness.scheduler.add_renderer("a")
    harness.scheduler.add_renderer("b")
    for number, expected_renderer in enumerate(["a", "b", "a"]):
        task = harness.start(make_render(str(number)))
        await run_pending_tasks()
        assert harness.assignments[-1] == (str(number), expected_renderer)
        harness.finish(str(number))
        await task


@pytest.mark.parametrize(("fails", "next_renderer"), [(False, "a"), (True, "b")])
async def test_only_a_render_that_did_not_fail_leaves_cached_results(
    harness: Harness, fails: bool, next_renderer: str
) -> None:
    harness.scheduler.add_renderer("a")
    harness.scheduler.add_renderer("b")
    first_task = harness.start(make_render("1", signatures=[1, 2]))
    await run_pending_tasks()
    if fails:
        first_task.cancel()
        await asyncio.gather(first_task, return_exceptions=True)
    else:
        harness.finish("1")
        await first_task
    second_task = harness.start(make_render("2", signatures=[1, 3]))
    await run_pending_tasks()
    assert harness.assignments == [("1", "a"), ("2", next_renderer)]
    harness.finish("2")
    await second_task


async def test_busy_and_removed_renderers_get_no_render(harness: Harness) -> None:
    harness.scheduler.add_renderer("a", foreign_prompts=["left-over"])
    harness.scheduler.add_renderer("b")
    harness.scheduler.remove_renderer("b")
    task = harness.start(make_render("1"))
    await run_pending_tasks()
    assert harness.assignments == []
    harness.scheduler.add_renderer("a", foreign_prompts=[])
    await run_pending_tasks()
    assert harness.assignments == [("1", "a")]
    harness.finish("1")
    await task


async def test_cancelled_render_leaves_its_renderer_to_the_next(harness: Harness) -> None:
    cancelled_task = harness.start(make_render("gone"))
    await run_pending_tasks()
    cancelled_task.cancel()
    harness.scheduler.add_renderer("a")
    await asyncio.gather(cancelled_task, return_exceptions=True)
    assert harness.scheduler.waiting_count == 0
    task = harness.start(make_render("next"))
    await run_pending_tasks()
    assert harness.assignments == [("next", "a")]
    # Cancelled at the very moment at which it gets its lease.
    unlucky_task = harness.start(make_render("unlucky"))
    await run_pending_tasks()
    harness.leases["next"].release()
    unlucky_task.cancel()
    await asyncio.gather(unlucky_task, return_exceptions=True)
    last_task = harness.start(make_render("last"))
    await run_pending_tasks()
    assert harness.assignments[-1] == ("last", "a")
    for name in ("next", "last"):
        harness.finish(name)
    await asyncio.gather(task, last_task)


async def test_render_cancelled_while_the_scheduler_closes_is_cancelled(harness: Harness) -> None:
    cancelled_task, staying_task = (
        harness.start(make_render("leaving")),
        harness.start(make_render("staying")),
    )
    await run_pending_tasks()
    harness.scheduler.close()
    cancelled_task.cancel()
    outcomes = await asyncio.gather(cancelled_task, staying_task, return_exceptions=True)
    assert [type(error) for error in outcomes] == [asyncio.CancelledError, ServiceUnavailable]
    harness.scheduler.add_renderer("a")
    await run_pending_tasks()
    assert (harness.assignments, harness.scheduler.waiting_count) == ([], 0)


async def test_two_attempts_at_one_render_wait_independently(harness: Harness) -> None:
    tasks = [harness.start(make_render("same")), harness.start(make_render("same"))]
    await run_pending_tasks()
    assert harness.scheduler.waiting_count == 2
    tasks[0].cancel()
    harness.scheduler.add_renderer("a")
    await run_pending_tasks()
    assert harness.assignments == [("same", "a")]
    harness.finish("same")
    await asyncio.gather(*tasks, return_exceptions=True)
