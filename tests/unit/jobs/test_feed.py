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


def make_event(number: int, event_type: EventType, **data: Any) -> JobEvent:
    return JobEvent(id=f"{number}-0", type=event_type, data=data)


class FakeJobStore:
    def __init__(self, job: Job) -> None:
        self.job = job

    async def find(self, job_id: str) -> Job:
        return self.job


class FakeHub:
    """A fake hub that delivers the given events and then nothing more."""

    def __init__(self, *stored_events: JobEvent) -> None:
        self.known = stored_events
        self.open = 0

    @asynccontextmanager
    async def subscribe(
        self, job_id: str, after: str | None
    ) -> AsyncIterator[Subscription[JobEvent]]:
        self.open += 1
        self.subscription: Subscription[JobEvent] = Subscription("0-0")
        self.subscription.offer(self.known)
        try:
            yield self.subscription
        finally:
            self.open -= 1


class FakeEventStore:
    def __init__(self, stored_events: Sequence[JobEvent] | Exception = ()) -> None:
        self._known = stored_events

    async def replay(self, job_id: str, after: str | None) -> Sequence[JobEvent]:
        if isinstance(self._known, Exception):
            raise self._known
        return [event for event in self._known if after is None or event.id > after]


def make_feed(job: Job, hub: FakeHub, events: FakeEventStore | None = None) -> JobFeed:
    stores: Any = {"jobs": FakeJobStore(job), "hub": hub, "events": events or FakeEventStore()}
    return JobFeed(**stores, quiet_seconds=0.05)


async def list_followed_events(feed: JobFeed, job: Job) -> list[JobEvent]:
    return [event async for batch in feed.follow(job, None) for event in batch]


async def test_a_stream_ends_with_the_final_event() -> None:
    hub = FakeHub(make_event(1, EventType.RUNNING), make_event(2, EventType.SUCCEEDED, attempt=1),
              make_event(3, EventType.PROGRESS))  # fmt: skip
    event_types = [e.type for e in await list_followed_events(make_feed(JOB, hub), JOB)]
    assert event_types == [EventType.RUNNING, EventType.SUCCEEDED]
    assert hub.open == 0


async def test_the_end_of_an_earlier_attempt_is_not_the_end() -> None:
    retried_job = replace(DONE, attempts=2)
    hub = FakeHub(
        make_event(1, EventType.FAILED, attempt=1), make_event(2, EventType.SUCCEEDED, attempt=2)
    )
    event_types = [
        e.type for e in await list_followed_events(make_feed(retried_job, hub), retried_job)
    ]
    assert event_types == [EventType.FAILED, EventType.SUCCEEDED]


async def test_lost_events_are_replaced_by_the_row() -> None:
    events = await list_followed_events(make_feed(DONE, FakeHub()), DONE)
    assert [(e.id, e.type, e.data["status"]) for e in events] == [
        ("", EventType.SUCCEEDED, "succeeded")
    ]


async def test_a_late_hub_costs_a_finished_job_no_events() -> None:
    history = [
        make_event(1, EventType.QUEUED), make_event(2, EventType.RUNNING),
        make_event(3, EventType.SUCCEEDED, attempt=1), make_event(4, EventType.PROGRESS),
    ]  # fmt: skip
    late_hub = FakeHub(history[0])
    events = await list_followed_events(make_feed(DONE, late_hub, FakeEventStore(history)), DONE)
    assert events == history[:3]
    cut_history = FakeEventStore(history[:2])
    events = await list_followed_events(make_feed(DONE, late_hub, cut_history), DONE)
    assert [event.id for event in events] == ["1-0", "2-0", ""]


async def test_events_that_arrive_while_the_row_is_read_are_not_skipped() -> None:
    history = [make_event(1, EventType.QUEUED), make_event(2, EventType.SUCCEEDED, attempt=1)]
    hub = FakeHub()

    class SlowJobStore(FakeJobStore):
        async def find(self, job_id: str) -> Job:
            hub.subscription.offer(history)
            return await super().find(job_id)

    stores: Any = {"jobs": SlowJobStore(DONE), "hub": hub, "events": FakeEventStore(history)}
    assert await list_followed_events(JobFeed(**stores, quiet_seconds=0.05), DONE) == history


async def test_events_that_cannot_be_read_are_replaced_by_the_row() -> None:
    unavailable_store = FakeEventStore(RedisConnectionError("unavailable"))
    feed = make_feed(DONE, FakeHub(make_event(1, EventType.QUEUED)), unavailable_store)
    assert [event.id for event in await list_followed_events(feed, DONE)] == ["1-0", ""]


async def test_silence_yields_empty_lists_and_closing_ends_the_subscription() -> None:
    hub = FakeHub()
    event_batches = make_feed(JOB, hub).follow(JOB, None)
    assert [await anext(event_batches), await anext(event_batches)] == [[], []]
    assert hub.open == 1
    await event_batches.aclose()
    assert hub.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_an_invalid_event_id_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest):
        make_feed(JOB, FakeHub()).follow(JOB, "x")


async def test_a_stream_is_complete_after_the_last_event() -> None:
    end_event = make_event(2, EventType.SUCCEEDED)
    event_store = FakeEventStore([make_event(1, EventType.RUNNING), end_event])
    assert await make_feed(DONE, FakeHub(), event_store).is_complete(DONE, "2-0")
    assert not await make_feed(DONE, FakeHub(), event_store).is_complete(DONE, "1-0")
    assert not await make_feed(DONE, FakeHub(), event_store).is_complete(DONE, None)
    assert not await make_feed(JOB, FakeHub(), event_store).is_complete(JOB, "2-0")
    unavailable_store = FakeEventStore(RedisConnectionError("unavailable"))
    assert not await make_feed(DONE, FakeHub(), unavailable_store).is_complete(DONE, "2-0")
