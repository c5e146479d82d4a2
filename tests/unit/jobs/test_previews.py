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
from tests.unit.jobs.test_feed import DONE, JOB, event


class Store:
    def __init__(self) -> None:
        self.watched_jobs: list[str] = []

    async def watch(self, job_id: str) -> None:
        self.watched_jobs.append(job_id)

    async def find(self, job_id: str) -> tuple[str, bytes] | None:
        return "image/png", b"png"


class Hub:
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


class Source:
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


def feed(store: Store, hub: Hub) -> PreviewFeed:
    parts: Any = (store, hub)
    return PreviewFeed(*parts)


async def test_the_newest_preview_is_sent_between_the_job_s_events() -> None:
    store, hub, source = Store(), Hub(), Source()
    async with asyncio.timeout(10):
        joined_stream = feed(store, hub).add_previews(JOB, source.follow())
        source.queue.put_nowait([event(1, EventType.RUNNING)])
        assert await anext(joined_stream) == [event(1, EventType.RUNNING)]
        hub.offer(5, 6)
        [preview] = await anext(joined_stream)
        assert (preview.id, preview.type) == ("", EventType.PREVIEW)
        assert preview.data == {
            "step": 1, "node": "3", "media_type": "image/png", "url": "/jobs/j/preview?number=6",
        }  # fmt: skip
        source.queue.put_nowait([event(2, EventType.PROGRESS)])
        assert await anext(joined_stream) == [event(2, EventType.PROGRESS)]
        source.queue.put_nowait(None)
        assert [batch async for batch in joined_stream] == []
    assert (store.watched_jobs, hub.open, source.is_closed) == (["j"], 0, True)


async def test_a_client_that_reads_slowly_misses_previews_and_no_events() -> None:
    store, hub, source = Store(), Hub(), Source()
    async with (
        asyncio.timeout(10),
        aclosing(feed(store, hub).add_previews(JOB, source.follow())) as joined_stream,
    ):
        hub.offer(1)
        await anext(joined_stream)
        for number in range(2, 300):
            hub.offer(number)
        hub.subscription = Subscription("0-0")
        assert [preview.type for preview in await anext(joined_stream)] == [EventType.PREVIEW]
        source.queue.put_nowait([event(1, EventType.RUNNING)])
        assert await anext(joined_stream) == [event(1, EventType.RUNNING)]
        hub.offer(300)
        [preview] = await anext(joined_stream)
        assert preview.data["url"] == "/jobs/j/preview?number=300"


async def test_both_sources_are_closed_with_the_stream() -> None:
    hub, source = Hub(), Source()
    async with (
        asyncio.timeout(10),
        aclosing(feed(Store(), hub).add_previews(JOB, source.follow())) as joined_stream,
    ):
        hub.offer(5)
        await anext(joined_stream)
        assert hub.open == 1
    assert (hub.open, source.is_closed) == (0, True)


async def test_an_error_of_the_events_ends_the_stream() -> None:
    async def failing() -> AsyncGenerator[list[JobEvent], None]:
        raise OSError("lost")
        yield []

    hub = Hub()
    with pytest.raises(OSError, match="lost"):
        async with asyncio.timeout(10):
            await anext(feed(Store(), hub).add_previews(JOB, failing()))
    assert hub.open == 0


async def test_asking_for_a_picture_asks_workers_for_more_while_the_job_runs() -> None:
    store, hub = Store(), Hub()
    assert await feed(store, hub).find_newest(JOB) == ("image/png", b"png")
    assert store.watched_jobs == ["j"]
    await feed(store, hub).find_newest(DONE)
    assert store.watched_jobs == ["j"]
