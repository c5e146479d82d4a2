from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest

from moyin.domain.queue_place import QueuePlace
from moyin.errors import ServiceUnavailable
from moyin.jobs.queue_places import QueuePlaceCache
from tests.waiting import eventually


class FakePools:
    """Two fake pools and a clock; a test sets the jobs' positions, and which pools fail or hang."""

    def __init__(self) -> None:
        self.positions: dict[str, Mapping[str, int]] = {"a": {"one": 1, "two": 2}, "b": {"else": 1}}
        self.calls: Counter[str] = Counter()
        self.down_pools: set[str] = set()
        self.hanging_pools: set[str] = set()
        self.released = asyncio.Event()
        self.now = 0.0
        self.queue = QueuePlaceCache(
            self.list_places, ("a", "b"), clock=self.clock, wait_seconds=0.1
        )

    def clock(self) -> float:
        return self.now

    async def list_places(self, pool: str) -> Mapping[str, QueuePlace]:
        self.calls[pool] += 1
        if pool in self.hanging_pools:
            await self.released.wait()
        if pool in self.down_pools:
            raise ServiceUnavailable("down")
        return {job: QueuePlace(position=n) for job, n in self.positions[pool].items()}

    async def read(self) -> dict[str, int | None]:
        """Return the position of each job in its queue, by job id, as the `QueuePlaceCache` reports it."""
        return {job: place.position for job, place in (await self.queue.read()).items()}


@pytest.fixture
async def pools() -> AsyncIterator[FakePools]:
    pools = FakePools()
    yield pools
    await pools.queue.close()


async def test_a_pool_is_called_once_a_second_for_all_clients(pools: FakePools) -> None:
    assert not pools.calls, "no client has read positions yet"
    for now in (0.0, 0.3, 0.99):
        pools.now = now
        all_positions = await asyncio.gather(*(pools.read() for _ in range(20)))
        assert all(positions == {"one": 1, "two": 2, "else": 1} for positions in all_positions)
    assert pools.calls == {"a": 1, "b": 1}
    pools.now, pools.positions["a"] = 1.0, {"two": 1}
    assert await pools.read() == {"two": 1, "else": 1}
    assert pools.calls == {"a": 2, "b": 2}


async def test_positions_of_a_pool_that_is_down_are_unknown(pools: FakePools) -> None:
    await pools.read()
    pools.down_pools, pools.now = {"a"}, 1.0
    assert await pools.read() == {"else": 1}
    pools.down_pools, pools.now = set(), 2.0
    assert await pools.read() == {"one": 1, "two": 2, "else": 1}


async def test_a_client_does_not_wait_for_a_pool_that_hangs(pools: FakePools) -> None:
    pools.hanging_pools = {"a"}
    async with asyncio.timeout(30):
        assert await pools.read() == {"else": 1}
        pools.now = 5.0
        assert await pools.read() == {"else": 1}
    assert pools.calls["a"] == 1, "the first call is still in progress"
    pools.released.set()

    async def knows_all_positions() -> bool:
        return len(await pools.read()) == 3

    await eventually(knows_all_positions)


async def test_old_positions_are_not_shown(pools: FakePools) -> None:
    await pools.read()
    pools.hanging_pools, pools.now = {"a"}, 2.0
    assert (await pools.read())["one"] == 1
    pools.now = 4.0
    assert await pools.read() == {"else": 1}
