"""Defines `JobFeed`, which streams the events of a job until the job has ended."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from redis.exceptions import RedisError

from moyin.domain.job import Job, JobEvent
from moyin.errors import InvalidRequest
from moyin.jobs.protocol.response import build_status_event
from moyin.store.events import EventStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore

_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")


class JobFeed:
    """Streams the events of jobs from Valkey; if Valkey fails, SQL shows whether a job has ended.

    Args:
        quiet_seconds: seconds without an event after which the job's row is read from SQL.
    """

    def __init__(
        self, *, jobs: JobStore, events: EventStore, hub: EventHub, quiet_seconds: float = 5.0
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._hub = hub
        self._quiet = quiet_seconds

    def follow(self, job: Job, after_id: str | None) -> AsyncGenerator[list[JobEvent], None]:
        """Yield the job's events in batches as they arrive, until the job has ended.

        An empty batch means that no event arrived for some seconds. If the final event is missing
        in Valkey, the job's row provides it, with an empty id.

        Args:
            after_id: the id of the last event that the caller has; None yields all events.

        Raises:
            InvalidRequest: ``after_id`` is not an event id.
            SlowConsumer: the caller iterates too slowly.
        """
        if after_id is not None and not _EVENT_ID.fullmatch(after_id):
            raise InvalidRequest(
                "Last-Event-ID must be the id of an event of this job, such as 1700000000000-0",
                field="Last-Event-ID",
            )
        return self._stream_events(job, after_id)

    async def is_complete(self, job: Job, after_id: str | None) -> bool:
        """Return True if the job has ended and its last event has the id ``after_id``."""
        if after_id is None or not job.status.is_final:
            return False
        try:
            events = await self._events.replay(job.id, None)
        except (RedisError, OSError):
            return False
        return bool(events) and events[-1].id == after_id and events[-1].type.is_final

    async def get_newest_id(self, job_id: str) -> str | None:
        """Return the newest event's id; None if there is no event or Valkey is unavailable."""
        try:
            return await self._events.get_newest_id(job_id)
        except (RedisError, OSError):
            return None

    async def wait_for_end(self, job: Job, after_id: str | None) -> None:
        """Wait until the job has ended, by reading its events after ``after_id``."""
        if job.status.is_final:
            return
        async with aclosing(self._stream_events(job, after_id)) as events:
            async for _ in events:
                continue

    async def _stream_events(
        self, job: Job, after_id: str | None
    ) -> AsyncGenerator[list[JobEvent], None]:
        # The events of a finished job arrive at once, or are read directly below.
        quiet_seconds = self._quiet / 10 if job.status.is_final else self._quiet
        async with self._hub.subscribe(job.id, after_id) as subscription:
            while True:
                batch = await subscription.next(quiet_seconds)
                if not batch:
                    # Taken first: the hub may queue more events while the row is read.
                    last_id = subscription.after
                    job = await self._jobs.find(job.id)
                    if job.status.is_final:
                        yield await self._read_last_events(job, last_id)
                        return
                end = await self._find_end(batch, job)
                yield batch[:end]
                if end is not None:
                    return

    async def _read_last_events(self, job: Job, after_id: str) -> list[JobEvent]:
        """Return the events of a job that has ended after ``after_id``, up to its final event."""
        # Not left to the hub: its shared reader may be late, and would then be taken for empty.
        try:
            events = await self._events.replay(job.id, after_id)
        except (RedisError, OSError):
            events = []
        end = await self._find_end(events, job)
        if end is not None:
            return events[:end]
        kind, data = build_status_event(job)
        return [*events, JobEvent(id="", type=kind, data=data)]

    async def _find_end(self, batch: list[JobEvent], job: Job) -> int | None:
        """Return the number of events in the batch up to and including the job's final event.

        Return None if the batch does not contain the final event of the newest attempt.
        """
        for count, event in enumerate(batch, start=1):
            if event.type.is_final and await self._is_end_of_job(event, job):
                return count
        return None

    async def _is_end_of_job(self, event: JobEvent, job: Job) -> bool:
        """Return True if this final event ends the job's newest attempt, not an earlier one."""
        attempt = event.data.get("attempt")
        if attempt is not None and attempt <= job.attempts:
            return bool(attempt == job.attempts)
        newest_attempt = (await self._jobs.find(job.id)).attempts
        return bool(attempt is None or attempt == newest_attempt)
