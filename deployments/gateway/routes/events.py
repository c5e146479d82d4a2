"""``/jobs/{id}/events`` (SSE) and ``/jobs/{id}/ws``: the same events, until the job's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from moyin.access.gatekeeper import context, status_of
from moyin.domain.job import JobEvent
from moyin.errors import MoyinError
from moyin.jobs.feed import JobFeed
from moyin.store.jobs import JobStore

__all__ = ["EventStream", "event_routes"]

_RETRY_MS = 2_000


def event_routes(jobs: JobStore, feed: JobFeed) -> APIRouter:
    """The routes that follow a job."""
    router = APIRouter(tags=["jobs"])

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, 204: {}},
    )
    async def events(
        request: Request,
        job_id: str,
        last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        """Server-sent events. Resume with `Last-Event-ID`; the last event is the job's end."""
        job = await jobs.get(context(request.scope).owner, job_id)
        followed = feed.follow(job, last or None)
        if await feed.told_all(job, last or None):
            # For EventSource, 204 means: do not connect again.
            return Response(status_code=204)
        return EventStream(_frames(followed))

    @router.websocket("/jobs/{job_id}/ws")
    async def socket(websocket: WebSocket, job_id: str, after: str | None = None) -> None:
        """The same events as JSON: `{"id", "type", "data"}`; closed with 1000 after the last.

        Errors close with 4000 + the HTTP status, such as 4404; the end of the key or session, with
        1008.
        """
        await websocket.accept()
        try:
            job = await jobs.get(context(websocket.scope).owner, job_id)
            await _until_gone(websocket, _send_all(websocket, feed.follow(job, after)))
        except MoyinError as error:
            await websocket.close(4000 + status_of(error), error.code)

    return router


class EventStream(StreamingResponse):
    """Ends its subscription with the response, however that ends."""

    def __init__(self, frames: AsyncGenerator[str, None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames):
            await super().__call__(scope, receive, send)


async def _frames(followed: AsyncGenerator[list[JobEvent], None]) -> AsyncGenerator[str, None]:
    # With the first event: what is sent on its own costs every layer of the way.
    first = f"retry: {_RETRY_MS}\n\n"
    async with aclosing(followed):
        try:
            async for events in followed:
                yield first + ("".join(map(_frame, events)) or ": still here\n\n")
                first = ""
        except MoyinError as error:
            told = _compact({"code": error.code, "message": error.message})
            yield f"{first}event: error\ndata: {told}\n\n"


def _frame(event: JobEvent) -> str:
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.type.value}\ndata: {_compact(event.data)}\n\n"


async def _send_all(websocket: WebSocket, followed: AsyncGenerator[list[JobEvent], None]) -> None:
    async with aclosing(followed):
        async for events in followed:
            for event in events:
                told = {"id": event.id or None, "type": event.type.value, "data": dict(event.data)}
                await websocket.send_text(_compact(told))
    await websocket.close(1000)


async def _until_gone(websocket: WebSocket, sending: Any) -> None:
    """Run ``sending`` until it is done or the client leaves."""
    tasks = [asyncio.create_task(sending), asyncio.create_task(_wait_for_end(websocket))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    except WebSocketDisconnect:
        return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_end(websocket: WebSocket) -> None:
    """Drop what the client says until it leaves."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue


def _compact(value: Any) -> str:
    # Many clients split lines as Python does: also at U+2028, which an error's message may have.
    return to_json(value, ensure_ascii=True).decode()
