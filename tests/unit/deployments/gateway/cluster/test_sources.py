"""Tests that while Ray hangs, calls to it occupy few threads of their own, and do not pile up."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deployments.gateway.cluster import sources
from tests.waiting import eventually


async def test_calls_that_hang_are_bounded() -> None:
    may_end, started_calls = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        started_calls.release()
        may_end.wait(60)

    try:
        hanging_tasks = [
            asyncio.ensure_future(sources._run_in_thread(hang)) for _ in range(sources._MAX_CALLS)
        ]
        for _ in hanging_tasks:
            assert await asyncio.to_thread(started_calls.acquire, timeout=60)
        # The first caller has given up, but its call still occupies a thread.
        hanging_tasks[0].cancel()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await sources._run_in_thread(hang)
    finally:
        may_end.set()
    await asyncio.wait(hanging_tasks)

    async def can_call() -> bool:
        try:
            return await sources._run_in_thread(lambda: True)
        except TimeoutError:
            return False

    assert await eventually(can_call)
