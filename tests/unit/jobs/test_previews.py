"""Tests that events about previews are merged into the events of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from moyin.domain.job import EventType, JobEvent
from moyin.jobs.previews import PreviewFeed
from moyin.store.hub import Subscription
from moyin.store.previews import Preview
from tests.unit.jobs.test_feed import DONE, JOB, make_event


class FakePreviewStore:
    def __init__(self) -> None:
        self.watched_jobs: list[str] = []

    async def watch(self, job_id: str) -> None:
        self.watched_jobs.append(job_id)

    async def find(self, job_id: str) -> tuple[str, bytes] | None:
        return "image/png", b"png"


class FakeHub:
    def __init__(self) -> None:
        self.subscription: Subscription[Preview] = Subscription("0-0")
        self.open = 0

    @asynccontextmanager
    async def subscribe(
        self, job_id: str, after: str | None
    ) -> AsyncIterator[Subscription[Preview]]:
        self.open += 1
        try:
            yield self.subscription
        finally:
            self.open -= 1

    def offer(self, *numbers: int) -> None:
        preview = Preview(step=1, node="3", media_type="image/png")
        self.subscription.offer([replace(preview, id=f"{number}-0") for number in numbers])


class FakeSource:
    """A source that yields the batches that a test sends, until the test sends None."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[JobEvent] | None] = asyncio.Queue()
        self.is_closed = False

    async def follow(self) -> AsyncGenerator[list[JobEvent], None]:
        try:
            while (batch := await self.queue.get()) is not None:
                yield batch
        finally:
            self.is_closed = True


def make_feed(store: FakePreviewStore, hub: FakeHub) -> PreviewFeed:
    dependencies: Any = (store, hub)
    return PreviewFeed(*dependencies)


async def test_the_newest_preview_is_sent_between_the_events_of_the_job() -> None:
    store, hub, source = FakePreviewStore(), FakeHub(), FakeSource()
    async with asyncio.timeout(10):
        joined_stream = make_feed(store, hub).add_previews(JOB, source.follow())
        source.queue.put_nowait([make_event(1, EventType.RUNNING)])
        assert await anext(joined_stream) == [make_event(1, EventType.RUNNING)]
        hub.offer(5, 6)
        [preview] = await anext(joined_stream)
        assert (preview.id, preview.type) == ("", EventType.PREVIEW)
        assert preview.data == {
            "step": 1, "node": "3", "media_type": "image/png", "url": "/jobs/j/preview?number=6",
        }  # fmt: skip
        source.queue.put_nowait([make_event(2, EventType.PROGRESS)])
        assert await anext(joined_stream) == [make_event(2, EventType.PROGRESS)]
        source.queue.put_nowait(None)
        assert [batch async for batch in joined_stream] == []
    assert (store.watched_jobs, hub.open, source.is_closed) == (["j"], 0, True)


async def test_a_client_that_reads_slowly_misses_previews_and_no_events() -> None:
    store, hub, source = FakePreviewStore(), FakeHub(), FakeSource()
    async with (
        asyncio.timeout(10),
        aclosing(make_feed(store, hub).add_previews(JOB, source.follow())) as joined_stream,
    ):
        hub.offer(1)
        await anext(joined_stream)
        for number in range(2, 300):
            hub.offer(number)
        hub.subscription = Subscription("0-0")
        assert [preview.type for preview in await anext(joined_stream)] == [EventType.PREVIEW]
        source.queue.put_nowait([make_event(1, EventType.RUNNING)])
        assert await anext(joined_stream) == [make_event(1, EventType.RUNNING)]
        hub.offer(300)
        [preview] = await anext(joined_stream)
        assert preview.data["url"] == "/jobs/j/preview?number=300"


async def test_both_sources_are_closed_with_the_stream() -> None:
    hub, source = FakeHub(), FakeSource()
    async with (
        asyncio.timeout(10),
        aclosing(
            make_feed(FakePreviewStore(), hub).add_previews(JOB, source.follow())
        ) as joined_stream,
    ):
        hub.offer(5)
        await anext(joined_stream)
        assert hub.open == 1
    assert (hub.open, source.is_closed) == (0, True)


async def test_an_error_of_the_events_ends_the_stream() -> None:
    async def fail_to_follow() -> AsyncGenerator[list[JobEvent], None]:
        raise OSError("lost")
        yield []

    hub = FakeHub()
    with pytest.raises(OSError, match="lost"):
        async with asyncio.timeout(10):
            await anext(make_feed(FakePreviewStore(), hub).add_previews(JOB, fail_to_follow()))
    assert hub.open == 0


async def test_reading_a_preview_requests_more_previews_while_the_job_runs() -> None:
    store, hub = FakePreviewStore(), FakeHub()
    assert await make_feed(store, hub).find_newest(JOB) == ("image/png", b"png")
    assert store.watched_jobs == ["j"]
    await make_feed(store, hub).find_newest(DONE)
    assert store.watched_jobs == ["j"]
