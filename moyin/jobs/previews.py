"""Adds events about new preview pictures to the event streams of clients that ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TypeVar

from moyin.domain.job import EventType, Job, JobEvent
from moyin.jobs.protocol.event_bodies import PreviewEvent
from moyin.store.hub import SlowConsumer
from moyin.store.previews import Preview, PreviewHub, PreviewStore

# Seconds between renewals: the store forgets after fifteen seconds that a job is watched.
_RENEWAL_SECONDS = 5.0
T = TypeVar("T")


class PreviewFeed:
    """Merges the events of jobs with events about their newest previews."""

    def __init__(self, store: PreviewStore, hub: PreviewHub) -> None:
        self._store = store
        self._hub = hub

    async def find_newest(self, job: Job) -> tuple[str, bytes] | None:
        """Return the media type and the bytes of the job's newest preview; None if there is none.

        While the job is open, this also makes its renderer publish further previews.
        """
        if not job.status.is_final:
            await self._store.watch(job.id)
        return await self._store.find(job.id)

    async def add_previews(
        self, job: Job, events: AsyncGenerator[list[JobEvent], None]
    ) -> AsyncGenerator[list[JobEvent], None]:
        """Yield the batches of ``events``, and between them events about new previews.

        Events about previews have no id, because clients can't resume a stream after them.
        """
        async with aclosing(events), aclosing(self._follow_previews(job.id)) as previews:
            next_events = asyncio.create_task(_read_next(events))
            next_preview = asyncio.create_task(_read_next(previews))
            try:
                while True:
                    await asyncio.wait(
                        [next_events, next_preview], return_when=asyncio.FIRST_COMPLETED
                    )
                    if next_preview.done():
                        if (preview := next_preview.result()) is not None:
                            yield [preview]
                        next_preview = asyncio.create_task(_read_next(previews))
                    if next_events.done():
                        if (batch := next_events.result()) is None:
                            return
                        yield batch
                        next_events = asyncio.create_task(_read_next(events))
            finally:
                # Cancel the reads first, because a generator can't be closed while it is read.
                for task in (next_events, next_preview):
                    task.cancel()
                await asyncio.gather(next_events, next_preview, return_exceptions=True)

    async def _follow_previews(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """Yield events about new previews without end; skip previews that a newer one replaced."""
        while True:
            # A client that reads too slowly gets no further previews, but the job's events
            # continue.
            with suppress(SlowConsumer):
                async with self._hub.subscribe(job_id, None) as subscription:
                    while True:
                        await self._store.watch(job_id)
                        deadline = asyncio.get_running_loop().time() + _RENEWAL_SECONDS
                        while (seconds_left := deadline - asyncio.get_running_loop().time()) > 0:
                            if previews := await subscription.next(seconds_left):
                                yield _to_event(job_id, previews[-1])


async def _read_next(source: AsyncGenerator[T, None]) -> T | None:
    return await anext(source, None)


def _to_event(job_id: str, preview: Preview) -> JobEvent:
    # The URL differs for each preview, because browsers load the same URL only once.
    number = preview.id.partition("-")[0]
    body = PreviewEvent(
        step=preview.step,
        node=preview.node or None,
        media_type=preview.media_type,
        url=f"/jobs/{job_id}/preview?number={number}",
    )
    return JobEvent(id="", type=EventType.PREVIEW, data=body.model_dump(exclude_none=True))
