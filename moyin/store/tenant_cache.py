"""Bytes that are kept in Valkey for a while, per tenant, because they may be asked for again.

Such a cache is never worth waiting for: it answers at once or counts as empty, and after an outage
it is left alone for some seconds.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from moyin.store.valkey import ValkeyConnection

__all__ = ["TenantCache"]

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 0.25
_PAUSE_SECONDS = 5.0


class TenantCache:
    """Keeps values per tenant: each expires, and the oldest go when there are too many.

    Args:
        prefix: of the names in Valkey.
    """

    def __init__(self, url: str, prefix: str) -> None:
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = redis.Redis.from_url(
            url,
            connection_class=ValkeyConnection,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._prefix = prefix
        self._rests_until = 0.0

    async def get(self, owner: str, digest: str) -> bytes | None:
        if self._rests:
            return None
        try:
            found: bytes | None = await self._redis.get(f"{self._index(owner)}:{digest}")
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        return found

    async def put(self, owner: str, digest: str, value: bytes, *, ttl: int, entries: int) -> None:
        """Keep ``value`` for ``ttl`` seconds, among the newest ``entries`` of its tenant."""
        if self._rests:
            return
        index, now = self._index(owner), time.time()
        name = f"{index}:{digest}"
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(name, value, ex=ttl)
                pipeline.zadd(index, {name: now})
                pipeline.zcard(index)
                pipeline.expire(index, ttl, gt=True)
                pipeline.expire(index, ttl, nx=True)
                outcomes = await pipeline.execute()
            if (spare := outcomes[2] - entries) > 0:
                oldest = await self._redis.zpopmin(index, spare)
                await self._redis.delete(*(found for found, _ in oldest))
        except (RedisError, OSError) as error:
            self._rest(error)

    async def close(self) -> None:
        await self._redis.aclose()

    def _index(self, owner: str) -> str:
        return f"{self._prefix}:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"

    @property
    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def _rest(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("the cache %s does not answer: %s", self._prefix, error)
