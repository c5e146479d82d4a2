"""What the judge compares, in Valkey for as long as its job runs, and never for longer than a day.

Nowhere else is a prompt written down for learning: a job in the queue is an id only. It is encrypted,
since Valkey's files on disk keep what was deleted until they are rewritten.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from redis.exceptions import RedisError

from moyin.errors import ServiceUnavailable
from moyin.store.events import connect

__all__ = ["ComparisonStore", "StoredComparison"]

_PREFIX = "moyin:judge:"
# Names of those that are open, by the time at which they expire.
_OPEN = f"{_PREFIX}open"
_KEPT_SECONDS = 24 * 3_600
_CAPACITY, _MOST_OF_ONE = 2_000, 200
_NONCE_BYTES = 12


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
        secret: the stack's; what was kept under another one is gone.
        capacity: comparisons that are open at a time, in all replicas together.
        most_of_one: of them, one tenant's, so that none takes the places of all.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        capacity: int = _CAPACITY,
        most_of_one: int = _MOST_OF_ONE,
    ) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=b"moyin comparisons").derive(secret)
        self._cipher = AESGCM(key)
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = connect(url)
        self._capacity, self._most_of_one = capacity, most_of_one

    async def has_room(self, owner: str) -> bool:
        """Return whether fewer are open than may be, of the owner's and of all."""
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            for name in (_OPEN, _open_of(owner)):
                pipeline.zremrangebyscore(name, "-inf", time.time())
                pipeline.zcard(name)
            _, of_all, _, of_owner = await pipeline.execute()
        return bool(of_all < self._capacity and of_owner < self._most_of_one)

    async def add(self, comparison_id: str, owner: str, comparison: bytes) -> bool:
        """Keep a comparison for a day; False when one of this id is there."""
        name, kept = _PREFIX + comparison_id, self._closed(comparison_id, comparison)
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hsetnx(name, "comparison", kept)
            pipeline.hsetnx(name, "owner", owner)
            pipeline.expire(name, _KEPT_SECONDS, nx=True)
            for index in (_OPEN, _open_of(owner)):
                pipeline.zadd(index, {comparison_id: time.time() + _KEPT_SECONDS}, nx=True)
                pipeline.expire(index, 2 * _KEPT_SECONDS)
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
        try:
            comparison = self._opened(comparison_id, kept)
            text = None if second is None else self._opened(comparison_id, second).decode()
        except InvalidTag:
            return None
        return StoredComparison(comparison=comparison, second=text)

    async def keep_second(self, comparison_id: str, text: str) -> None:
        """Keep the second answer beside its comparison."""
        name = _PREFIX + comparison_id
        kept = self._closed(comparison_id, text.encode(errors="replace"))
        async with _reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(name, "second", kept)
            # Nothing stays for ever, even where the comparison has expired in this moment.
            pipeline.expire(name, _KEPT_SECONDS, nx=True)
            await pipeline.execute()

    async def remove(self, comparison_id: str) -> None:
        """Delete what is kept of a comparison; once more does no harm."""
        async with _reachable():
            owner = await self._redis.hget(_PREFIX + comparison_id, "owner")
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(_PREFIX + comparison_id)
                pipeline.zrem(_OPEN, comparison_id)
                if owner is not None:
                    pipeline.zrem(_open_of(owner.decode()), comparison_id)
                await pipeline.execute()

    async def clear(self) -> None:
        """Delete what is kept of all comparisons."""
        async with _reachable():
            names = await self._redis.zrange(_OPEN, 0, -1)
        for name in names:
            await self.remove(name.decode())

    async def close(self) -> None:
        await self._redis.aclose()

    def _closed(self, comparison_id: str, text: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text, comparison_id.encode())

    def _opened(self, comparison_id: str, kept: bytes) -> bytes:
        nonce, text = kept[:_NONCE_BYTES], kept[_NONCE_BYTES:]
        return self._cipher.decrypt(nonce, text, comparison_id.encode())


def _open_of(owner: str) -> str:
    return f"{_OPEN}:{owner}"


@asynccontextmanager
async def _reachable() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise ServiceUnavailable("comparisons can't be kept or read now", retry_after=2) from error
