"""Defines the HTTP response for server-sent events, and merges several sources of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_HEARTBEAT_SECONDS = 15.0
ValueT = TypeVar("ValueT")


class EventStreamResponse(StreamingResponse):
    """A response that sends server-sent events, and closes their source when the response ends."""

    def __init__(self, frames: AsyncGenerator[str, None] | AsyncGenerator[bytes, None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames):
            await super().__call__(scope, receive, send)


async def merge_streams(
    streams: Mapping[str, AsyncGenerator[ValueT, None]],
    *,
    heartbeat_seconds: float = _HEARTBEAT_SECONDS,
) -> AsyncGenerator[tuple[str, ValueT] | None, None]:
    """Yield the values of several endless streams as they come, each with the name of its stream.

    Yields None after ``heartbeat_seconds`` without a value, even if there are no streams. Closes
    all streams when the caller closes this generator, or when a stream fails.
    """
    pending_tasks = {_read_next(stream): name for name, stream in streams.items()}
    try:
        while not pending_tasks:
            await asyncio.sleep(heartbeat_seconds)
            yield None
        while True:
            done_tasks, _ = await asyncio.wait(
                pending_tasks, timeout=heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done_tasks:
                yield None
            for task in done_tasks:
                name = pending_tasks.pop(task)
                yield name, task.result()
                pending_tasks[_read_next(streams[name])] = name
    finally:
        for task in pending_tasks:
            task.cancel()
        await asyncio.gather(*pending_tasks, return_exceptions=True)
        for stream in streams.values():
            await stream.aclose()


def _read_next(stream: AsyncGenerator[ValueT, None]) -> asyncio.Task[ValueT]:
    async def read_value() -> ValueT:
        return await anext(stream)

    return asyncio.create_task(read_value())
