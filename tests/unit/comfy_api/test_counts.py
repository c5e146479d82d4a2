from __future__ import annotations

import asyncio
from typing import Any

from moyin.comfy_api.counts import OpenCounts


class Prompts:
    """Counts how often it is asked; answers when it may."""

    def __init__(self) -> None:
        self.count = 0
        self.asked = 0
        self.may = asyncio.Event()
        self.may.set()

    async def open_count(self, owner: str) -> int:
        self.asked += 1
        count = self.count
        await self.may.wait()
        return count


async def test_sockets_that_ask_together_ask_once() -> None:
    prompts: Any = Prompts()
    counts = OpenCounts(prompts)
    prompts.count = 3
    assert await asyncio.gather(*(counts.lately("ann", 60) for _ in range(5))) == [3] * 5
    assert await counts.lately("ann", 60) == 3
    assert prompts.asked == 1
    assert await counts.lately("bob", 60) == 3
    assert await counts.lately("ann", 0) == 3
    assert prompts.asked == 3


async def test_news_is_asked_for_anew_and_an_older_answer_does_not_undo_it() -> None:
    prompts: Any = Prompts()
    counts = OpenCounts(prompts)
    prompts.may.clear()
    ticking = asyncio.create_task(counts.lately("ann", 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    prompts.count = 1
    told = asyncio.create_task(counts.now("ann"))
    await asyncio.sleep(0)
    prompts.may.set()
    assert await told == 1
    await ticking
    assert await counts.lately("ann", 60) == 1
