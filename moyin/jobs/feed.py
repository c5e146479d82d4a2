"""Defines `JobFeed`, which streams the events of a job until it has ended."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from redis.exceptions import RedisError

from moyin.domain.job import Job, JobEvent
from moyin.errors import InvalidRequest
from moyin.jobs.protocol.response import event_of
from moyin.store.events import EventStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore

__all__ = ["JobFeed"]

_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")


class JobFeed:
    """Streams job events from Valkey; if Valkey is unavailable, the job's row supplies the end.

    Args:
        quiet: seconds without an event after which the job's row is read.
    """

    def __init__(
        self, *, jobs: JobStore, events: EventStore, hub: EventHub, quiet: float = 5.0
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._hub = hub
        self._quiet = quiet

    def follow(self, job: Job, after: str | None) -> AsyncGenerator[list[JobEvent], None]:
        """Yield the events after the id ``after`` until the job's end, in the lists they arrive in.

        An empty list means that no event came for some time. An event without an id was read from
        the job's row, because Valkey does not have it.

        Raises:
            InvalidRequest: ``after`` is not an event id.
            SlowConsumer: raised by the iterator if the caller reads too slowly.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                "Last-Event-ID must be the id of an event of this job, such as 1700000000000-0",
                field="Last-Event-ID",
            )
        return self._follow(job, after)

    async def is_complete(self, job: Job, after: str | None) -> bool:
        """Return True if the job has ended and ``after`` is the id of its last event."""
        if after is None or not job.status.is_final:
            return False
        try:
            events = await self._events.replay(job.id, None)
        except (RedisError, OSError):
            return False
        return bool(events) and events[-1].id == after and events[-1].type.is_final

    async def newest_id(self, job_id: str) -> str | None:
        """Return the id of the newest event; None: there is none, or Valkey is unavailable."""
        try:
            return await self._events.get_newest_id(job_id)
        except (RedisError, OSError):
            return None

    async def wait(self, job: Job, after: str | None) -> None:
        """Return once the job has ended, by the events after the id ``after``."""
        if job.status.is_final:
            return
        async with aclosing(self._follow(job, after)) as events:
            async for _ in events:
                continue

    async def _follow(self, job: Job, after: str | None) -> AsyncGenerator[list[JobEvent], None]:
        # All events of a finished job arrive at once, or not at all.
        quiet = self._quiet / 10 if job.status.is_final else self._quiet
        async with self._hub.subscribe(job.id, after) as subscription:
            while True:
                batch = await subscription.next(quiet)
                if not batch:
                    job = await self._jobs.find(job.id)
                    if job.status.is_final:
                        kind, data = event_of(job)
                        yield [JobEvent(id="", type=kind, data=data)]
                        return
                end = await self._end_index(batch, job)
                yield batch[:end]
                if end is not None:
                    return

    async def _end_index(self, batch: list[JobEvent], job: Job) -> int | None:
        """Return the number of events up to the job's end; None: the end is not among them."""
        for count, event in enumerate(batch, start=1):
            if event.type.is_final and await self._is_end(event, job):
                return count
        return None

    async def _is_end(self, event: JobEvent, job: Job) -> bool:
        """Return True for the end of the newest attempt.

        The row is read again only if ``job``, as it was at the start, does not settle that.
        """
        attempt = event.data.get("attempt")
        if attempt is not None and attempt <= job.attempts:
            return bool(attempt == job.attempts)
        attempts = (await self._jobs.find(job.id)).attempts
        return bool(attempt is None or attempt == attempts)
