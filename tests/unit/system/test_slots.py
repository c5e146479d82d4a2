"""Tests which waiting call gets the next slot of a back end."""

from __future__ import annotations

import asyncio
import math

import pytest

from moyin.errors import Overloaded
from moyin.system.slots import Slots


class Clock:
    """A clock that shows the time that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TenantCalls:
    """Calls of tenants to one back end.

    The list ``began`` has the tenants in the order in which their calls got a slot.
    """

    def __init__(self, limit: int, queue: int = 100) -> None:
        self.clock = Clock()
        self.slots = Slots(limit, max_waiting=queue, patience=60, clock=self.clock)
        self.began: list[str] = []
        self.refused: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def call(self, tenant: str) -> None:
        self._tasks.append(asyncio.create_task(self._call(tenant)))
        await let_tasks_run()

    async def end(self, tenant: str) -> None:
        self.slots.release(tenant)
        await let_tasks_run()

    async def cancel(self, index: int) -> None:
        self._tasks[index].cancel()
        await let_tasks_run()

    async def _call(self, tenant: str) -> None:
        try:
            if not self.slots.try_acquire(tenant):
                await self.slots.wait(tenant, 60, 1)
        except Overloaded:
            self.refused.append(tenant)
        else:
            self.began.append(tenant)


async def let_tasks_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_tenant_alone_uses_every_slot() -> None:
    calls = TenantCalls(3)
    for _ in range(5):
        await calls.call("a")
    assert (calls.began, calls.slots.waiting) == (["a"] * 3, 2)


async def test_freed_slot_goes_to_the_tenant_with_the_fewest_running_calls() -> None:
    calls = TenantCalls(3)
    for tenant in ("a", "a", "a", "a", "a", "a", "b", "b", "c"):
        await calls.call(tenant)
    del calls.began[:]
    for tenant in ("a", "a", "a"):
        await calls.end(tenant)
    assert calls.began[:2] == ["b", "c"]
    assert calls.began[2] in ("a", "b")


async def test_tenants_without_running_calls_take_turns() -> None:
    calls = TenantCalls(1)
    for tenant in ("a", "a", "a", "b", "b", "c"):
        await calls.call(tenant)
    for tenant in ("a", "a", "b", "c", "a"):
        await calls.end(tenant)
    assert calls.began == ["a", "a", "b", "c", "a", "b"]


async def test_last_slot_is_reserved_while_other_tenants_are_active() -> None:
    calls = TenantCalls(3)
    await calls.call("b")
    await calls.end("b")
    for _ in range(4):
        await calls.call("a")
    assert (calls.began, calls.slots.waiting) == (["b", "a", "a"], 2)
    # Another tenant gets the reserved slot at once, although calls wait.
    await calls.call("b")
    assert calls.began[-1] == "b"
    await calls.end("b")
    assert calls.slots.waiting == 2
    # A minute later no other tenant is active.
    calls.clock.now = 61.0
    await calls.end("a")
    assert (calls.slots.taken, calls.slots.waiting) == (3, 0)


async def test_full_queue_makes_room_for_the_tenant_with_fewer_waiting_calls() -> None:
    calls = TenantCalls(1, queue=3)
    for tenant in ("a", "a", "a", "a"):
        await calls.call(tenant)
    await calls.call("b")
    assert calls.refused == ["a"]
    await calls.call("c")
    assert calls.refused == ["a", "a"]
    # Each tenant has one waiting call by now: none is displaced any more.
    await calls.call("c")
    assert calls.refused == ["a", "a", "c"]
    for tenant in ("a", "a", "b", "c"):
        await calls.end(tenant)
    assert sorted(calls.began) == ["a", "a", "b", "c"]
    assert (calls.slots.taken, calls.slots.waiting) == (0, 0)


async def test_cancelled_waiting_call_holds_no_slot() -> None:
    calls = TenantCalls(1)
    for tenant in ("a", "b", "b"):
        await calls.call(tenant)
    await calls.cancel(1)
    assert calls.slots.waiting == 1
    await calls.end("a")
    await calls.end("b")
    assert calls.began == ["a", "b"]
    assert (calls.slots.taken, calls.slots.waiting) == (0, 0)


async def test_slot_granted_to_a_cancelled_call_is_passed_on() -> None:
    calls = TenantCalls(1)
    for tenant in ("a", "b", "c"):
        await calls.call(tenant)
    calls.slots.release("a")
    await calls.cancel(1)
    assert calls.began == ["a", "c"]


async def test_call_waits_at_most_its_patience() -> None:
    slots = Slots(1, max_waiting=1, patience=0.01)
    assert slots.try_acquire("a")
    with pytest.raises(Overloaded):
        await slots.wait("b", 60, 1)
    slots.release("a")
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_last_slot_can_be_reserved_forever() -> None:
    slots = Slots(2, reserve_seconds=math.inf)
    assert slots.try_acquire("a") and not slots.try_acquire("a")
    assert slots.try_acquire("b")


class BackgroundCalls:
    """Background calls to one back end.

    The list ``began`` has the tenants in the order in which their calls got a slot.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.began: list[str] = []
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def call(self, tenant: str, seconds: float = 60) -> None:
        self.tasks.append(asyncio.create_task(self._call(tenant, seconds)))
        await let_tasks_run()

    async def end(self, tenant: str) -> None:
        self.slots.release_in_background(tenant)
        await let_tasks_run()

    async def _call(self, tenant: str, seconds: float) -> None:
        try:
            await self.slots.acquire_in_background(tenant, seconds)
        except Overloaded:
            self.refused.append(tenant)
        else:
            self.began.append(tenant)


async def test_the_background_uses_its_share_and_leaves_a_slot_free() -> None:
    calls = TenantCalls(4)
    background_calls = BackgroundCalls(calls.slots)
    for _ in range(5):
        await background_calls.call("a")
    assert len(background_calls.began) == calls.slots.in_background == 2
    await calls.call("b")
    # Three are taken; the last free slot is not for the background.
    await background_calls.end("a")
    assert calls.slots.taken == 3 and len(background_calls.began) == 3
    await calls.call("c")
    await background_calls.end("a")
    assert calls.slots.taken == 3 and len(background_calls.began) == 3
    await calls.end("b")
    assert len(background_calls.began) == 4
    calls.slots.background_share = 1.0
    await calls.end("c")
    assert len(background_calls.began) == 5 and calls.slots.taken == calls.slots.in_background == 3


async def test_other_calls_come_before_the_background() -> None:
    calls = TenantCalls(1)
    background_calls = BackgroundCalls(calls.slots)
    await background_calls.call("a")
    await background_calls.call("a")
    await calls.call("b")
    await calls.call("b")
    assert (background_calls.began, calls.began) == (["a"], [])
    await background_calls.end("a")
    await calls.end("b")
    assert (background_calls.began, calls.began) == (["a"], ["b", "b"])
    await calls.end("b")
    assert background_calls.began == ["a", "a"]


async def test_tenants_share_the_background() -> None:
    calls = TenantCalls(2)
    background_calls = BackgroundCalls(calls.slots)
    for tenant in ("a", "a", "a", "b"):
        await background_calls.call(tenant)
    for tenant in ("a", "a", "b"):
        await background_calls.end(tenant)
    # Nobody of a tenant runs when a slot becomes free: the one that has waited longest is next.
    assert background_calls.began == ["a", "a", "b", "a"]


async def test_cancelled_background_call_gives_its_place_back() -> None:
    calls = TenantCalls(2)
    background_calls = BackgroundCalls(calls.slots)
    await background_calls.call("a")
    await background_calls.call("b")
    await background_calls.call("c", 0.0)
    await asyncio.sleep(0.01)
    assert background_calls.refused == ["c"]
    background_calls.tasks[1].cancel()
    await let_tasks_run()
    await background_calls.end("a")
    assert calls.slots.taken == calls.slots.in_background == 0
    unlimited_calls = BackgroundCalls(Slots(None))
    await unlimited_calls.call("a")
    await unlimited_calls.end("a")
    assert unlimited_calls.began == ["a"] and unlimited_calls.slots.taken == 0
