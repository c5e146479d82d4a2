"""Caches bytes per tenant in Valkey.

Requests must not wait for the cache: if Valkey does not respond at once, the cache counts as empty,
and it is not used for the next five seconds.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from redis.exceptions import RedisError

from moyin.store.valkey import connect_cache

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 0.25
_PAUSE_SECONDS = 5.0


class TenantCache:
    """Caches values by tenant and digest; values expire, and the oldest are evicted beyond a maximum.

    Args:
        prefix: the prefix of the keys in Valkey.
    """

    def __init__(self, url: str, prefix: str) -> None:
        # Typed as Any, since redis-py's types assume that responses are decoded.
        self._redis: Any = connect_cache(url, _TIMEOUT_SECONDS)
        self._prefix = prefix
        self._paused_until = 0.0

    async def get(self, owner: str, digest: str) -> bytes | None:
        """Return a cached value, or None if it is not cached or Valkey is unavailable."""
        if self._is_paused:
            return None
        try:
            value: bytes | None = await self._redis.get(f"{self._build_index_key(owner)}:{digest}")
        except (RedisError, OSError) as error:
            self._record_outage(error)
            return None
        return value

    async def put(
        self, owner: str, digest: str, value: bytes, *, ttl_seconds: int, max_entries: int
    ) -> None:
        """Cache a value for ``ttl_seconds``; keep only the owner's newest ``max_entries``."""
        if self._is_paused:
            return
        index_key, timestamp = self._build_index_key(owner), time.time()
        key = f"{index_key}:{digest}"
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(key, value, ex=ttl_seconds)
                pipeline.zadd(index_key, {key: timestamp})
                pipeline.zcard(index_key)
                pipeline.expire(index_key, ttl_seconds, gt=True)
                pipeline.expire(index_key, ttl_seconds, nx=True)
                results = await pipeline.execute()
            if (excess_count := results[2] - max_entries) > 0:
                oldest_entries = await self._redis.zpopmin(index_key, excess_count)
                await self._redis.delete(*(evicted_key for evicted_key, _ in oldest_entries))
        except (RedisError, OSError) as error:
            self._record_outage(error)

    async def close(self) -> None:
        await self._redis.aclose()

    def _build_index_key(self, owner: str) -> str:
        return f"{self._prefix}:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _record_outage(self, error: Exception) -> None:
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("the cache %s in Valkey is unavailable: %s", self._prefix, error)
