"""Tests that a source is read once for all of its viewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar

from deployments.gateway.cluster.bodies import ClusterBody, PoolBody
from deployments.gateway.cluster.shared_reading import SharedReading
from tests.waiting import eventually


class FakeSource:
    """A fake source of a cluster with one pool; it counts how often it is read."""

    def __init__(self) -> None:
        self.reading_count = 0
        self.queued = 0
        self.failure: Exception | None = None
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def read(self) -> ClusterBody:
        self.reading_count += 1
        await self.may_respond.wait()
        if self.failure is not None:
            raise self.failure
        return ClusterBody(pools=[PoolBody(name="p", is_responding=True, queued=self.queued)])


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_concurrent_viewers_share_one_reading() -> None:
    source, clock = FakeSource(), FakeClock()
    monitor = SharedReading(source.read, interval_seconds=2, clock=clock)
    source.may_respond.clear()
    viewers = [asyncio.create_task(monitor.get()) for _ in range(20)]
    await eventually(lambda: source.reading_count == 1)
    viewers[0].cancel()
    source.may_respond.set()
    snapshots = await asyncio.gather(*viewers[1:])
    assert all(snapshot is snapshots[0] for snapshot in snapshots)
    await monitor.get()
    assert source.reading_count == 1
    clock.now += 2
    await monitor.get()
    assert source.reading_count == 2


async def test_failed_reading_is_repeated_for_the_next_viewer() -> None:
    source = FakeSource()
    monitor = SharedReading(source.read, interval_seconds=2)
    source.failure = RuntimeError("no")
    try:
        await monitor.get()
    except RuntimeError as error:
        assert error is source.failure
    else:
        raise AssertionError("the failure was hidden")
    source.failure = None
    assert (await monitor.get()).pools[0].name == "p"


async def test_viewers_receive_only_changes() -> None:
    source, clock = FakeSource(), FakeClock()
    monitor = SharedReading(source.read, interval_seconds=0.01, clock=clock)
    queue_lengths: list[int | None] = []

    async def record_queue_lengths(snapshots: AsyncGenerator[ClusterBody, None]) -> None:
        async with aclosing(snapshots):
            async for snapshot in snapshots:
                queue_lengths.append(snapshot.pools[0].queued)

    viewer_task = asyncio.create_task(record_queue_lengths(monitor.follow()))
    await eventually(lambda: queue_lengths == [0])
    clock.now += 1
    await eventually(lambda: source.reading_count == 2)
    assert queue_lengths == [0]
    source.queued = 3
    clock.now += 1
    await eventually(lambda: queue_lengths == [0, 3])
    viewer_task.cancel()
    await asyncio.gather(viewer_task, return_exceptions=True)
    reading_count = source.reading_count
    clock.now += 10
    await asyncio.sleep(0.05)
    assert source.reading_count == reading_count, "nothing is read without viewers"


async def test_reading_runs_outside_of_any_request() -> None:
    """A source is read outside of the context of the viewer's request that causes it.

    Otherwise Serve would cancel the read when that viewer disconnects.
    """
    request: ContextVar[str] = ContextVar("request", default="none")

    async def read() -> str:
        return request.get()

    request.set("of the first viewer")
    assert await SharedReading(read, interval_seconds=1).get() == "none"


async def test_the_pause_after_a_long_reading_is_bounded() -> None:
    clock, reading_count = FakeClock(), 0

    async def read() -> int:
        nonlocal reading_count
        reading_count += 1
        clock.now += 25
        return reading_count

    monitor = SharedReading(read, interval_seconds=60, pause_factor=100, clock=clock)
    assert await monitor.get() == 1
    clock.now += 601
    assert await monitor.get() == 2


async def test_an_expensive_source_is_read_less_often() -> None:
    clock, reading_count = FakeClock(), 0

    async def read() -> int:
        nonlocal reading_count
        reading_count += 1
        clock.now += 3
        return reading_count

    monitor = SharedReading(read, interval_seconds=60, pause_factor=100, clock=clock)
    assert await monitor.get() == 1
    clock.now += 299
    assert await monitor.get() == 1
    clock.now += 1
    assert await monitor.get() == 2


async def test_a_source_that_does_not_respond_is_soon_read_again() -> None:
    clock = FakeClock()
    responses: list[str | None] = [None, "answer"]

    async def read() -> str | None:
        clock.now += 30
        return responses.pop(0)

    monitor = SharedReading(read, interval_seconds=60, pause_factor=100, clock=clock)
    assert await monitor.get() is None
    clock.now += 4
    assert await monitor.get() is None
    clock.now += 1
    assert await monitor.get() == "answer"


async def test_a_new_viewer_sees_the_last_value_until_there_is_a_new_one() -> None:
    source, clock = FakeSource(), FakeClock()
    monitor = SharedReading(source.read, interval_seconds=1, shows_old_value=True, clock=clock)
    async with aclosing(monitor.follow()) as first_viewer:
        assert (await anext(first_viewer)).pools[0].queued == 0
    clock.now += 1
    source.queued = 3
    source.may_respond.clear()
    async with aclosing(monitor.follow()) as second_viewer:
        assert (await anext(second_viewer)).pools[0].queued == 0
        source.may_respond.set()
        assert (await anext(second_viewer)).pools[0].queued == 3
