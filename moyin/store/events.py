"""Stores the events of running jobs in Valkey, in one bounded and expiring stream per job.

Events only inform clients. The job's row in SQL is authoritative, so an outage of Valkey delays
clients and never affects the result of a job.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json
from redis.exceptions import RedisError

from moyin.domain.job import EventType, JobEvent
from moyin.store.valkey import connect

_log = logging.getLogger(__name__)
EVENT_PREFIX = "moyin:events:"
# The minimum number of events that are kept for clients that subscribe late.
_MAX_EVENTS = 1_000


class EventStore:
    """Publishes and reads the events of jobs.

    Attributes:
        lost_count: the number of events that could not be published.
    """

    def __init__(self, url: str, *, retention: timedelta) -> None:
        self._redis = connect(url)
        self._retention = int(retention.total_seconds())
        self.lost_count = 0

    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        """Append an event to the job's stream; log and count errors of Valkey, but raise none.

        Args:
            data: the members of the event's JSON.
        """
        await self.publish_all(job_id, [(kind, data)])

    async def publish_all(
        self, job_id: str, events: Sequence[tuple[EventType, Mapping[str, Any]]]
    ) -> None:
        """Append events in order, in one round trip; errors are handled as by `publish`."""
        name = EVENT_PREFIX + job_id
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for kind, data in events:
                    fields: Any = {"type": kind.value, "data": to_json(data)}
                    pipeline.xadd(name, fields, maxlen=_MAX_EVENTS, approximate=True)
                pipeline.expire(name, self._retention)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self.lost_count += len(events)
            kinds = ", ".join(kind.value for kind, _ in events)
            _log.warning(
                "could not publish events of job %s (%s) in Valkey: %s", job_id, kinds, error
            )

    async def replay(self, job_id: str, after: str | None) -> list[JobEvent]:
        """Return the events after the stream id ``after``, oldest first; if it is None, all events."""
        start = "-" if after is None else f"({after}"
        entries: Any = await self._redis.xrange(EVENT_PREFIX + job_id, min=start)
        return [parse_event(entry_id, fields) for entry_id, fields in entries]

    async def get_newest_id(self, job_id: str) -> str | None:
        """Return the stream id of the job's newest event, or None if there is no event."""
        entries: Any = await self._redis.xrevrange(EVENT_PREFIX + job_id, count=1)
        return entries[0][0].decode() if entries else None

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Delete all events of jobs; if Valkey is unavailable, they expire instead."""
        if not job_ids:
            return
        try:
            await self._redis.unlink(*(EVENT_PREFIX + job_id for job_id in job_ids))
        except (RedisError, OSError) as error:
            _log.warning(
                "could not delete the events of %d jobs in Valkey, so they expire later: %s",
                len(job_ids),
                error,
            )

    async def ping(self) -> None:
        """Check that Valkey responds; raise `RedisError` if it does not."""
        await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()


def parse_event(entry_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent:
    """Return the event that an entry of a Valkey stream describes."""
    return JobEvent(
        id=entry_id.decode(),
        type=EventType(fields[b"type"].decode()),
        data=from_json(fields[b"data"]),
    )
