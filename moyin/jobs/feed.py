"""Following a job to its end, with or without Valkey."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from redis.exceptions import RedisError

from moyin.domain.job import Job, JobEvent
from moyin.errors import InvalidRequest
from moyin.jobs.protocol.translate import event_of
from moyin.store.events import EventStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore

__all__ = ["JobFeed"]

_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")


class JobFeed:
    """Streams of job events that always end with the job.

    Args:
        quiet: after so many seconds without an event the job's row is asked how things stand.
    """

    def __init__(
        self, *, jobs: JobStore, events: EventStore, hub: EventHub, quiet: float = 5.0
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._hub = hub
        self._quiet = quiet

    def follow(self, job: Job, after: str | None) -> AsyncGenerator[list[JobEvent], None]:
        """Events after the id ``after`` until the job's end, together those that come together;
        none of them marks a quiet spell.

        An event without an id was read from the job's row, because Valkey had no such event.

        Raises:
            InvalidRequest: ``after`` is not an event id.
            SlowConsumer: from the iterator.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                "Last-Event-ID must be the id of an event of this job", field="Last-Event-ID"
            )
        return self._follow(job, after)

    async def told_all(self, job: Job, after: str | None) -> bool:
        """Whether a client that has seen ``after`` has nothing left to wait for."""
        if after is None or not job.status.is_final:
            return False
        try:
            events = await self._events.replay(job.id, None)
        except (RedisError, OSError):
            return False
        return bool(events) and events[-1].id == after and events[-1].type.is_final

    async def newest(self, job_id: str) -> str | None:
        """The id of the last event so far; None: there is none, or Valkey is away."""
        try:
            return await self._events.newest(job_id)
        except (RedisError, OSError):
            return None

    async def ended(self, job: Job, after: str | None) -> None:
        """Return when the job has ended, of which the events after ``after`` tell."""
        if job.status.is_final:
            return
        async with aclosing(self._follow(job, after)) as events:
            async for _ in events:
                continue

    async def _follow(self, job: Job, after: str | None) -> AsyncGenerator[list[JobEvent], None]:
        # What a finished job has said comes at once or never.
        quiet = self._quiet / 10 if job.status.is_final else self._quiet
        async with self._hub.subscribe(job.id, after) as watch:
            while True:
                news = await watch.next(quiet)
                if not news:
                    job = await self._jobs.find(job.id)
                    if job.status.is_final:
                        kind, data = event_of(job)
                        yield [JobEvent(id="", type=kind, data=data)]
                        return
                end = await self._end(news, job)
                yield news[:end]
                if end is not None:
                    return

    async def _end(self, news: list[JobEvent], job: Job) -> int | None:
        """How many of the events there are up to the job's end; None: it is not among them."""
        for count, event in enumerate(news, start=1):
            if event.type.is_final and await self._is_end(event, job):
                return count
        return None

    async def _is_end(self, event: JobEvent, job: Job) -> bool:
        """False for the end of an attempt that had a successor when its watcher came.

        The row is asked only where that can't be told from what it said then.
        """
        ended = event.data.get("attempt")
        if ended is not None and ended <= job.attempts:
            return bool(ended == job.attempts)
        attempts = (await self._jobs.find(job.id)).attempts
        return bool(ended is None or ended == attempts)
