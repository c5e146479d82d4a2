"""Iteration that ends at a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

__all__ = ["until"]

T = TypeVar("T")


async def until(deadline: float, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """``items`` while ``loop.time()`` is before ``deadline``.

    The clock watches the source only: were it to run while the consumer works, its cancellation
    would strike there.

    Raises:
        TimeoutError: at the deadline.
    """
    while True:
        async with asyncio.timeout_at(deadline):
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
        yield item
