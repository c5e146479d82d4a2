"""Tests that large requests run beside the event loop, one of a tenant at a time."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from moyin.errors import Overloaded
from moyin.system.heavy_work import HeavyWork, run_aside
from moyin.system.slots import Slots

LARGE = 10**6


async def test_only_large_requests_leave_the_event_loops_thread() -> None:
    work = HeavyWork()
    async with work.admit("ann", 10):
        assert await run_aside(threading.get_ident) == threading.get_ident()
    async with work.admit("ann", LARGE):
        assert await run_aside(threading.get_ident) != threading.get_ident()
    assert await run_aside(threading.get_ident) == threading.get_ident()


async def test_the_event_loop_runs_while_a_large_request_is_processed() -> None:
    is_free, result = threading.Event(), None
    async with HeavyWork().admit("ann", LARGE):
        # The thread waits for the event loop, which would hang if the function ran in it.
        waiting = asyncio.create_task(run_aside(is_free.wait, 10))
        await asyncio.sleep(0)
        is_free.set()
        result = await waiting
    assert result


async def test_a_tenant_has_one_large_request_at_a_time_and_others_need_not_wait() -> None:
    work, is_done = HeavyWork(), asyncio.Event()
    order = []

    async def process(name: str, tenant: str) -> None:
        async with work.admit(tenant, LARGE):
            order.append(name)
            if name == "first":
                await is_done.wait()

    tasks = [asyncio.create_task(process(name, "ann")) for name in ("first", "second")]
    await asyncio.sleep(0)
    await process("other tenant", "bob")
    assert order == ["first", "other tenant"]
    is_done.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "other tenant", "second"]


async def test_small_requests_and_nested_contexts_do_not_wait() -> None:
    work = HeavyWork()
    async with asyncio.timeout(10), work.admit("ann", LARGE), work.admit("ann", LARGE):
        await asyncio.create_task(_admit_small(work))


async def _admit_small(work: HeavyWork) -> None:
    async with work.admit("ann", 10):
        pass


async def test_a_full_queue_refuses_further_large_requests() -> None:
    slots = Slots(2, max_waiting=0, patience=30, reserve_seconds=math.inf)
    work = HeavyWork(slots)
    assert slots.try_acquire("ann")
    with pytest.raises(Overloaded):
        async with work.admit("ann", LARGE):
            pass


async def test_a_function_of_a_cancelled_request_keeps_its_turn_until_it_ends() -> None:
    work, has_begun, is_free = HeavyWork(), threading.Event(), threading.Event()

    def wait_for_release() -> None:
        has_begun.set()
        is_free.wait(10)

    async def process() -> None:
        async with work.admit("ann", LARGE):
            await run_aside(wait_for_release)

    task = asyncio.create_task(process())
    await asyncio.to_thread(has_begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    is_free.set()
    with pytest.raises(asyncio.CancelledError):
        await task
