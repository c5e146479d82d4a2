from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from moyin.domain.job import EventType, Job, JobEvent, JobStatus, Progress
from moyin.errors import InvalidRequest
from moyin.jobs.feed import JobFeed
from moyin.store.hub import Subscription

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id="j", owner="ann", kind="chat", status=JobStatus.RUNNING, spec="s", steps=1,
    progress=Progress(), results=(), error=None, attempts=1, priority=3, metadata={},
    created_at=NOW, started_at=NOW, finished_at=None,
)  # fmt: skip
DONE = replace(JOB, status=JobStatus.SUCCEEDED)


def event(number: int, kind: EventType, **data: Any) -> JobEvent:
    return JobEvent(id=f"{number}-0", type=kind, data=data)


class Jobs:
    def __init__(self, job: Job) -> None:
        self.job = job

    async def find(self, job_id: str) -> Job:
        return self.job


class Hub:
    """A fake hub that delivers the given events and then nothing more."""

    def __init__(self, *stored_events: JobEvent) -> None:
        self.known = stored_events
        self.open = 0

    @asynccontextmanager
    async def subscribe(
        self, job_id: str, after: str | None
    ) -> AsyncIterator[Subscription[JobEvent]]:
        self.open += 1
        watch: Subscription[JobEvent] = Subscription("0-0")
        watch.offer(self.known)
        try:
            yield watch
        finally:
            self.open -= 1


class Events:
    def __init__(self, stored_events: Sequence[JobEvent] | Exception = ()) -> None:
        self._known = stored_events

    async def replay(self, job_id: str, after: str | None) -> Sequence[JobEvent]:
        if isinstance(self._known, Exception):
            raise self._known
        return self._known


def feed(job: Job, hub: Hub, events: Events | None = None) -> JobFeed:
    parts: Any = {"jobs": Jobs(job), "hub": hub, "events": events or Events()}
    return JobFeed(**parts, quiet_seconds=0.05)


async def followed_events(feed: JobFeed, job: Job) -> list[JobEvent]:
    return [event async for batch in feed.follow(job, None) for event in batch]


async def test_a_stream_ends_with_the_final_event() -> None:
    hub = Hub(event(1, EventType.RUNNING), event(2, EventType.SUCCEEDED, attempt=1),
              event(3, EventType.PROGRESS))  # fmt: skip
    events = [e.type for e in await followed_events(feed(JOB, hub), JOB)]
    assert events == [EventType.RUNNING, EventType.SUCCEEDED]
    assert hub.open == 0


async def test_the_end_of_an_earlier_attempt_is_not_the_end() -> None:
    retried_job = replace(DONE, attempts=2)
    hub = Hub(event(1, EventType.FAILED, attempt=1), event(2, EventType.SUCCEEDED, attempt=2))
    events = [e.type for e in await followed_events(feed(retried_job, hub), retried_job)]
    assert events == [EventType.FAILED, EventType.SUCCEEDED]


async def test_lost_events_are_replaced_by_the_row() -> None:
    events = await followed_events(feed(DONE, Hub()), DONE)
    assert [(e.id, e.type, e.data["status"]) for e in events] == [
        ("", EventType.SUCCEEDED, "succeeded")
    ]


async def test_silence_yields_empty_lists_and_closing_ends_the_subscription() -> None:
    hub = Hub()
    followed_events = feed(JOB, hub).follow(JOB, None)
    assert [await anext(followed_events), await anext(followed_events)] == [[], []]
    assert hub.open == 1
    await followed_events.aclose()
    assert hub.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_bad_event_id_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest):
        feed(JOB, Hub()).follow(JOB, "x")


async def test_a_stream_is_complete_after_the_last_event() -> None:
    end_event = event(2, EventType.SUCCEEDED)
    stored_events = Events([event(1, EventType.RUNNING), end_event])
    assert await feed(DONE, Hub(), stored_events).is_complete(DONE, "2-0")
    assert not await feed(DONE, Hub(), stored_events).is_complete(DONE, "1-0")
    assert not await feed(DONE, Hub(), stored_events).is_complete(DONE, None)
    assert not await feed(JOB, Hub(), stored_events).is_complete(JOB, "2-0")
    unavailable_events = Events(RedisConnectionError("unavailable"))
    assert not await feed(DONE, Hub(), unavailable_events).is_complete(DONE, "2-0")
