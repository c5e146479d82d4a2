"""Answers that are kept in Valkey, to be given again for the very same request.

The cache is never worth waiting for: it answers at once or counts as empty, and after an outage it
is left alone for some seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from moyin.domain.money import Usage

__all__ = ["KeptResponse", "ResponseStore"]

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 0.25
_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptResponse:
    """An answer, as its client got it.

    Attributes:
        body: whole; of a stream all its events, but for its cost.
        usage: what it took to make it.
    """

    backend: str
    model: str
    content_type: str
    body: bytes
    usage: Usage


class ResponseStore:
    """Keeps answers per tenant: each expires, and the oldest go when there are too many."""

    def __init__(self, url: str) -> None:
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._rests_until = 0.0

    async def get(self, owner: str, digest: str) -> KeptResponse | None:
        if self._rests:
            return None
        try:
            kept = await self._redis.get(_name(owner, digest))
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        return None if kept is None else _decoded(kept)

    async def put(
        self, owner: str, digest: str, response: KeptResponse, *, ttl: int, entries: int
    ) -> None:
        """Keep ``response`` for ``ttl`` seconds, among the newest ``entries`` of its tenant."""
        if self._rests:
            return
        index, name, now = _index(owner), _name(owner, digest), time.time()
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(name, _encoded(response), ex=ttl)
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

    @property
    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def _rest(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("the response cache does not answer: %s", error)


def _index(owner: str) -> str:
    return f"moyin:responses:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"


def _name(owner: str, digest: str) -> str:
    return f"{_index(owner)}:{digest}"


def _encoded(response: KeptResponse) -> bytes:
    head = {
        "backend": response.backend,
        "model": response.model,
        "content_type": response.content_type,
        "usage": asdict(response.usage),
    }
    return json.dumps(head).encode() + b"\n" + response.body


def _decoded(kept: bytes) -> KeptResponse:
    head, _, body = kept.partition(b"\n")
    told = json.loads(head)
    return KeptResponse(**{**told, "usage": Usage(**told["usage"])}, body=body)
