"""Stores pairs of answers in Valkey until the judge has compared them, for a day at most.

The judge is a model that compares two answers to a prompt; its job has only the id of a comparison.
Comparisons are encrypted, since Valkey's files contain deleted values until they are rewritten.
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
from moyin.store.valkey import connect

_PREFIX = "moyin:judge:"
# A sorted set of the ids of open comparisons by expiry time.
_OPEN = f"{_PREFIX}open"
_LIFETIME_SECONDS = 24 * 3_600
_CAPACITY, _CAPACITY_PER_TENANT = 2_000, 200
_NONCE_BYTES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredComparison:
    """Holds a prompt with two answers for the judge.

    Attributes:
        comparison: the prompt and the first answer, serialized.
        second: the second answer, or None if it is not stored yet.
    """

    comparison: bytes
    second: str | None


class ComparisonStore:
    """Stores encrypted comparisons; its methods raise `ServiceUnavailable` if Valkey is unavailable.

    Args:
        secret: the secret of the stack, from which the encryption key is derived.
        capacity: the maximum number of comparisons of all tenants.
        capacity_per_tenant: the maximum number of comparisons of one tenant.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        capacity: int = _CAPACITY,
        capacity_per_tenant: int = _CAPACITY_PER_TENANT,
    ) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=b"moyin comparisons").derive(secret)
        self._cipher = AESGCM(key)
        # Typed as Any, since redis-py's types assume that responses are decoded.
        self._redis: Any = connect(url)
        self._capacity, self._capacity_per_tenant = capacity, capacity_per_tenant

    async def has_capacity(self, owner: str) -> bool:
        """Return True if neither the owner nor all tenants together are at their capacity."""
        async with _translate_errors(), self._redis.pipeline(transaction=True) as pipeline:
            for name in (_OPEN, _build_open_key(owner)):
                pipeline.zremrangebyscore(name, "-inf", time.time())
                pipeline.zcard(name)
            _, total_count, _, owner_count = await pipeline.execute()
        return bool(total_count < self._capacity and owner_count < self._capacity_per_tenant)

    async def add(self, comparison_id: str, owner: str, comparison: bytes) -> bool:
        """Store a comparison for a day; return False if the id exists already."""
        name, ciphertext = _PREFIX + comparison_id, self._encrypt(comparison_id, comparison)
        async with _translate_errors(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hsetnx(name, "comparison", ciphertext)
            pipeline.hsetnx(name, "owner", owner)
            pipeline.expire(name, _LIFETIME_SECONDS, nx=True)
            for index_key in (_OPEN, _build_open_key(owner)):
                pipeline.zadd(index_key, {comparison_id: time.time() + _LIFETIME_SECONDS}, nx=True)
                pipeline.expire(index_key, 2 * _LIFETIME_SECONDS)
            is_new, *_ = await pipeline.execute()
        return bool(is_new)

    async def get(self, comparison_id: str) -> StoredComparison | None:
        """Return a comparison, or None if it does not exist or was encrypted with another secret."""
        async with _translate_errors():
            ciphertext, second_ciphertext = await self._redis.hmget(
                _PREFIX + comparison_id, ["comparison", "second"]
            )
        if ciphertext is None:
            return None
        try:
            comparison = self._decrypt(comparison_id, ciphertext)
            second_answer = (
                None
                if second_ciphertext is None
                else self._decrypt(comparison_id, second_ciphertext).decode()
            )
        except InvalidTag:
            return None
        return StoredComparison(comparison=comparison, second=second_answer)

    async def add_second_answer(self, comparison_id: str, answer: str) -> None:
        """Store the second answer of a comparison."""
        name = _PREFIX + comparison_id
        ciphertext = self._encrypt(comparison_id, answer.encode(errors="replace"))
        async with _translate_errors(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(name, "second", ciphertext)
            # If the comparison has just expired, the command above creates a key that must expire.
            pipeline.expire(name, _LIFETIME_SECONDS, nx=True)
            await pipeline.execute()

    async def remove(self, comparison_id: str) -> None:
        """Delete a comparison if it exists."""
        async with _translate_errors():
            owner = await self._redis.hget(_PREFIX + comparison_id, "owner")
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(_PREFIX + comparison_id)
                pipeline.zrem(_OPEN, comparison_id)
                if owner is not None:
                    pipeline.zrem(_build_open_key(owner.decode()), comparison_id)
                await pipeline.execute()

    async def clear(self) -> None:
        """Delete all comparisons."""
        async with _translate_errors():
            names = await self._redis.zrange(_OPEN, 0, -1)
        for name in names:
            await self.remove(name.decode())

    async def close(self) -> None:
        await self._redis.aclose()

    def _encrypt(self, comparison_id: str, plaintext: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plaintext, comparison_id.encode())

    def _decrypt(self, comparison_id: str, nonce_and_ciphertext: bytes) -> bytes:
        nonce, ciphertext = nonce_and_ciphertext[:_NONCE_BYTES], nonce_and_ciphertext[_NONCE_BYTES:]
        return self._cipher.decrypt(nonce, ciphertext, comparison_id.encode())


def _build_open_key(owner: str) -> str:
    return f"{_OPEN}:{owner}"


@asynccontextmanager
async def _translate_errors() -> AsyncIterator[None]:
    """Raise `ServiceUnavailable` if the block raises an error of Valkey."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise ServiceUnavailable(
            "comparisons cannot be stored or read in Valkey at the moment; try again", retry_after=2
        ) from error
