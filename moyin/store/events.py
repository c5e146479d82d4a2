"""What jobs say while they run: one Valkey stream per job, bounded and expiring.

Events are for watching. The job's row is the truth, so an outage of Valkey costs a watcher
liveliness, never a job its outcome.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import redis.asyncio as redis
from pydantic_core import from_json, to_json
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from moyin.domain.job import EventType, JobEvent
from moyin.store.valkey import ValkeyConnection

__all__ = ["EVENTS", "EventStore", "connect", "from_entry"]

_log = logging.getLogger(__name__)
EVENTS = "moyin:events:"
# A watcher that comes late sees this many events at least; progress is what gets trimmed.
_MAX_EVENTS = 1_000
_TIMEOUT_SECONDS = 2.0


def connect(url: str, *, timeout: float | None = _TIMEOUT_SECONDS) -> redis.Redis:
    """A client with short timeouts: events are never worth holding up a job."""
    return redis.Redis.from_url(
        url,
        connection_class=ValkeyConnection,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        socket_timeout=timeout,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


class EventStore:
    """Publishes and replays job events."""

    def __init__(self, url: str, *, retention: timedelta) -> None:
        self._redis = connect(url)
        self._retention = int(retention.total_seconds())
        self.lost = 0

    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        """Append an event. Never raises for an outage: it is logged and counted in ``lost``."""
        await self.publish_all(job_id, [(kind, data)])

    async def publish_all(
        self, job_id: str, events: Sequence[tuple[EventType, Mapping[str, Any]]]
    ) -> None:
        """Append events, in order and in one round trip; see `publish`."""
        name = EVENTS + job_id
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for kind, data in events:
                    fields: Any = {"type": kind.value, "data": to_json(data)}
                    pipeline.xadd(name, fields, maxlen=_MAX_EVENTS, approximate=True)
                pipeline.expire(name, self._retention)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self.lost += len(events)
            kinds = ", ".join(kind.value for kind, _ in events)
            _log.warning("events of job %s not published: %s: %s", job_id, kinds, error)

    async def replay(self, job_id: str, after: str | None) -> list[JobEvent]:
        """Events after the stream id ``after`` (all of them: None), oldest first."""
        start = "-" if after is None else f"({after}"
        entries: Any = await self._redis.xrange(EVENTS + job_id, min=start)
        return [from_entry(entry_id, fields) for entry_id, fields in entries]

    async def newest(self, job_id: str) -> str | None:
        """The stream id of the last event."""
        entries: Any = await self._redis.xrevrange(EVENTS + job_id, count=1)
        return entries[0][0].decode() if entries else None

    async def ping(self) -> None:
        await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()


def from_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent:
    return JobEvent(
        id=entry_id.decode(),
        type=EventType(fields[b"type"].decode()),
        data=from_json(fields[b"data"]),
    )
