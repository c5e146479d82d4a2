from __future__ import annotations

import asyncio
from typing import Any

from moyin.comfy_api.counts import OpenPromptCounter


class FakePromptStore:
    """A fake store that counts queries, and does not respond before ``may_respond`` is set."""

    def __init__(self) -> None:
        self.count = 0
        self.queries = 0
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def count_open(self, owner: str) -> int:
        self.queries += 1
        count = self.count
        await self.may_respond.wait()
        return count


async def test_concurrent_queries_of_one_tenant_are_merged() -> None:
    prompts: Any = FakePromptStore()
    counts = OpenPromptCounter(prompts)
    prompts.count = 3
    assert await asyncio.gather(*(counts.count_recent("ann", 60) for _ in range(5))) == [3] * 5
    assert await counts.count_recent("ann", 60) == 3
    assert prompts.queries == 1
    assert await counts.count_recent("bob", 60) == 3
    assert await counts.count_recent("ann", 0) == 3
    assert prompts.queries == 3


async def test_an_older_query_does_not_overwrite_a_newer_count() -> None:
    prompts: Any = FakePromptStore()
    counts = OpenPromptCounter(prompts)
    prompts.may_respond.clear()
    older_task = asyncio.create_task(counts.count_recent("ann", 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    prompts.count = 1
    newer_task = asyncio.create_task(counts.count_now("ann"))
    await asyncio.sleep(0)
    prompts.may_respond.set()
    assert await newer_task == 1
    await older_task
    assert await counts.count_recent("ann", 60) == 1
