"""What the judge compares, in Valkey for as long as its job runs, and never for longer than a day.

Nowhere else is a prompt written down for learning: a job in the queue is an id only.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from moyin.errors import ServiceUnavailable
from moyin.store.events import connect

__all__ = ["ComparisonStore", "StoredComparison"]

_PREFIX = "moyin:judge:"
# Names of those that are open, by the time at which they expire.
_OPEN = f"{_PREFIX}open"
_KEPT_SECONDS = 24 * 3_600
_CAPACITY = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredComparison:
    """A comparison as bytes.

    Attributes:
        second: the second answer; None: it is not there yet.
    """

    comparison: bytes
    second: str | None


class ComparisonStore:
    """Every method raises `ServiceUnavailable` while Valkey does not answer.

    Args:
        capacity: comparisons that are open at a time, in all replicas together.
    """

    def __init__(self, url: str, *, capacity: int = _CAPACITY) -> None:
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = connect(url)
        self._capacity = capacity

    async def has_room(self) -> bool:
        """Return whether fewer are open than may be."""
        async with _reachable():
            await self._redis.zremrangebyscore(_OPEN, "-inf", time.time())
            return bool(await self._redis.zcard(_OPEN) < self._capacity)

    async def add(self, comparison_id: str, comparison: bytes) -> bool:
        """Keep a comparison for a day; False when one of this id is there."""
        name = _PREFIX + comparison_id
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hsetnx(name, "comparison", comparison)
            pipeline.expire(name, _KEPT_SECONDS, nx=True)
            pipeline.zadd(_OPEN, {comparison_id: time.time() + _KEPT_SECONDS}, nx=True)
            pipeline.expire(_OPEN, 2 * _KEPT_SECONDS)
            added, *_ = await pipeline.execute()
        return bool(added)

    async def get(self, comparison_id: str) -> StoredComparison | None:
        """Return a comparison that is open."""
        async with _reachable():
            kept, second = await self._redis.hmget(
                _PREFIX + comparison_id, ["comparison", "second"]
            )
        if kept is None:
            return None
        return StoredComparison(comparison=kept, second=None if second is None else second.decode())

    async def keep_second(self, comparison_id: str, text: str) -> None:
        """Keep the second answer beside its comparison."""
        name = _PREFIX + comparison_id
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(name, "second", text.encode(errors="replace"))
            # Nothing stays for ever, even where the comparison has expired in this moment.
            pipeline.expire(name, _KEPT_SECONDS, nx=True)
            await pipeline.execute()

    async def remove(self, comparison_id: str) -> None:
        """Delete what is kept of a comparison; once more does no harm."""
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(_PREFIX + comparison_id)
            pipeline.zrem(_OPEN, comparison_id)
            await pipeline.execute()

    async def close(self) -> None:
        await self._redis.aclose()


@asynccontextmanager
async def _reachable() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise ServiceUnavailable("comparisons can't be kept or read now", retry_after=2) from error
