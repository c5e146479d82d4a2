"""Answers that clients may come back to, in Valkey, so that every replica notices it.

Names are keyed hashes of a conversation, values tell which request it was. No text is kept, and nothing
longer than some minutes. Like a cache it is never worth waiting for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from moyin.store.valkey import ValkeyConnection

__all__ = ["FollowUpStore"]

_log = logging.getLogger(__name__)
_PREFIX = b"moyin:followups:"
_TIMEOUT_SECONDS = 0.5
_PAUSE_SECONDS = 5.0


class FollowUpStore:
    """Values by name, of which each can be taken once."""

    def __init__(self, url: str) -> None:
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = redis.Redis.from_url(
            url,
            connection_class=ValkeyConnection,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._rests_until = 0.0

    @property
    def away(self) -> bool:
        """Whether Valkey did not answer a moment ago."""
        return time.monotonic() < self._rests_until

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return the values of ``names``, in one round trip; None: Valkey is away."""
        try:
            values: list[bytes | None] = await self._redis.mget([_PREFIX + name for name in names])
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        return values

    async def take(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return the values of ``names`` and delete them: of several that take one, one gets it."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.getdel(_PREFIX + name)
                values: list[bytes | None] = await pipeline.execute()
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        return values

    async def put(self, values: Mapping[bytes, bytes], seconds: int) -> None:
        """Keep ``values`` by name for so many seconds."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name, value in values.items():
                    pipeline.set(_PREFIX + name, value, ex=seconds)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self._rest(error)

    async def close(self) -> None:
        await self._redis.aclose()

    def _rest(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("follow-ups of other replicas are not noticed: %s", error)
