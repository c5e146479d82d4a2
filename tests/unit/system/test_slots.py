"""Tests which waiting call gets the next slot of a back end."""

from __future__ import annotations

import asyncio
import math

import pytest

from moyin.errors import Overloaded
from moyin.system.slots import Slots


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """Calls of tenants to one back end; ``began`` lists the tenants as they got their slots."""

    def __init__(self, limit: int, queue: int = 100) -> None:
        self.clock = Clock()
        self.slots = Slots(limit, max_waiting=queue, patience=60, clock=self.clock)
        self.began: list[str] = []
        self.refused: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def call(self, tenant: str) -> None:
        self._tasks.append(asyncio.create_task(self._call(tenant)))
        await settle()

    async def end(self, tenant: str) -> None:
        self.slots.release(tenant)
        await settle()

    async def leave(self, number: int) -> None:
        self._tasks[number].cancel()
        await settle()

    async def _call(self, tenant: str) -> None:
        try:
            if not self.slots.try_acquire(tenant):
                await self.slots.wait(tenant, 60, 1)
        except Overloaded:
            self.refused.append(tenant)
        else:
            self.began.append(tenant)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_tenant_alone_uses_every_slot() -> None:
    queue = Queue(3)
    for _ in range(5):
        await queue.call("a")
    assert (queue.began, queue.slots.waiting) == (["a"] * 3, 2)


async def test_freed_slot_goes_to_the_tenant_with_the_fewest_running_calls() -> None:
    queue = Queue(3)
    for tenant in ("a", "a", "a", "a", "a", "a", "b", "b", "c"):
        await queue.call(tenant)
    del queue.began[:]
    for tenant in ("a", "a", "a"):
        await queue.end(tenant)
    assert queue.began[:2] == ["b", "c"]
    assert queue.began[2] in ("a", "b")


async def test_tenants_without_running_calls_take_turns() -> None:
    queue = Queue(1)
    for tenant in ("a", "a", "a", "b", "b", "c"):
        await queue.call(tenant)
    for tenant in ("a", "a", "b", "c", "a"):
        await queue.end(tenant)
    assert queue.began == ["a", "a", "b", "c", "a", "b"]


async def test_last_slot_is_reserved_while_other_tenants_are_active() -> None:
    queue = Queue(3)
    await queue.call("b")
    await queue.end("b")
    for _ in range(4):
        await queue.call("a")
    assert (queue.began, queue.slots.waiting) == (["b", "a", "a"], 2)
    # Another tenant gets the reserved slot at once, although calls wait.
    await queue.call("b")
    assert queue.began[-1] == "b"
    await queue.end("b")
    assert queue.slots.waiting == 2
    # A minute later no other tenant is active.
    queue.clock.now = 61.0
    await queue.end("a")
    assert (queue.slots.taken, queue.slots.waiting) == (3, 0)


async def test_full_queue_makes_room_for_the_tenant_with_fewer_waiting_calls() -> None:
    queue = Queue(1, queue=3)
    for tenant in ("a", "a", "a", "a"):
        await queue.call(tenant)
    await queue.call("b")
    assert queue.refused == ["a"]
    await queue.call("c")
    assert queue.refused == ["a", "a"]
    # Each tenant has one waiting call by now: none is displaced any more.
    await queue.call("c")
    assert queue.refused == ["a", "a", "c"]
    for tenant in ("a", "a", "b", "c"):
        await queue.end(tenant)
    assert sorted(queue.began) == ["a", "a", "b", "c"]
    assert (queue.slots.taken, queue.slots.waiting) == (0, 0)


async def test_cancelled_waiting_call_holds_no_slot() -> None:
    queue = Queue(1)
    for tenant in ("a", "b", "b"):
        await queue.call(tenant)
    await queue.leave(1)
    assert queue.slots.waiting == 1
    await queue.end("a")
    await queue.end("b")
    assert queue.began == ["a", "b"]
    assert (queue.slots.taken, queue.slots.waiting) == (0, 0)


async def test_slot_of_a_call_cancelled_at_that_moment_is_passed_on() -> None:
    queue = Queue(1)
    for tenant in ("a", "b", "c"):
        await queue.call(tenant)
    queue.slots.release("a")
    await queue.leave(1)
    assert queue.began == ["a", "c"]


async def test_call_waits_at_most_its_patience() -> None:
    slots = Slots(1, max_waiting=1, patience=0.01)
    assert slots.try_acquire("a")
    with pytest.raises(Overloaded):
        await slots.wait("b", 60, 1)
    slots.release("a")
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_last_slot_may_always_be_reserved() -> None:
    slots = Slots(2, reserve_seconds=math.inf)
    assert slots.try_acquire("a") and not slots.try_acquire("a")
    assert slots.try_acquire("b")


class Background:
    """Background calls to one back end; ``began`` lists the tenants as they got their slots."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.began: list[str] = []
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def call(self, tenant: str, seconds: float = 60) -> None:
        self.tasks.append(asyncio.create_task(self._call(tenant, seconds)))
        await settle()

    async def end(self, tenant: str) -> None:
        self.slots.release_in_background(tenant)
        await settle()

    async def _call(self, tenant: str, seconds: float) -> None:
        try:
            await self.slots.acquire_in_background(tenant, seconds)
        except Overloaded:
            self.refused.append(tenant)
        else:
            self.began.append(tenant)


async def test_the_background_uses_its_share_and_leaves_a_slot_free() -> None:
    queue = Queue(4)
    background = Background(queue.slots)
    for _ in range(5):
        await background.call("a")
    assert len(background.began) == queue.slots.in_background == 2
    await queue.call("b")
    # Three are taken; the last free slot is not for the background.
    await background.end("a")
    assert queue.slots.taken == 3 and len(background.began) == 3
    await queue.call("c")
    await background.end("a")
    assert queue.slots.taken == 3 and len(background.began) == 3
    await queue.end("b")
    assert len(background.began) == 4
    queue.slots.background_share = 1.0
    await queue.end("c")
    assert len(background.began) == 5 and queue.slots.taken == queue.slots.in_background == 3


async def test_other_calls_come_before_the_background() -> None:
    queue = Queue(1)
    background = Background(queue.slots)
    await background.call("a")
    await background.call("a")
    await queue.call("b")
    await queue.call("b")
    assert (background.began, queue.began) == (["a"], [])
    await background.end("a")
    await queue.end("b")
    assert (background.began, queue.began) == (["a"], ["b", "b"])
    await queue.end("b")
    assert background.began == ["a", "a"]


async def test_tenants_share_the_background() -> None:
    queue = Queue(2)
    background = Background(queue.slots)
    for tenant in ("a", "a", "a", "b"):
        await background.call(tenant)
    for tenant in ("a", "a", "b"):
        await background.end(tenant)
    # Nobody of a tenant runs when a slot becomes free: the one that has waited longest is next.
    assert background.began == ["a", "a", "b", "a"]


async def test_a_background_call_that_leaves_gives_its_place_back() -> None:
    queue = Queue(2)
    background = Background(queue.slots)
    await background.call("a")
    await background.call("b")
    await background.call("c", 0.0)
    await asyncio.sleep(0.01)
    assert background.refused == ["c"]
    background.tasks[1].cancel()
    await settle()
    await background.end("a")
    assert queue.slots.taken == queue.slots.in_background == 0
    unlimited_background = Background(Slots(None))
    await unlimited_background.call("a")
    await unlimited_background.end("a")
    assert unlimited_background.began == ["a"] and unlimited_background.slots.taken == 0
