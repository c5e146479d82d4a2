"""Serves a job's events as ``/jobs/{id}/events`` (SSE) and ``/jobs/{id}/ws`` (WebSocket)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from moyin.access.gatekeeper import context, get_http_status
from moyin.domain.job import JobEvent
from moyin.errors import MoyinError
from moyin.jobs.feed import JobFeed
from moyin.store.jobs import JobStore

__all__ = ["EventStream", "job_event_routes"]

_RETRY_MS = 2_000


def job_event_routes(jobs: JobStore, feed: JobFeed) -> APIRouter:
    """Return the routes that follow a job."""
    router = APIRouter(tags=["jobs"])

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, 204: {}},
    )
    async def follow(
        request: Request,
        job_id: str,
        last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        """Follow a job until its end by server-sent events. Resume with `Last-Event-ID`."""
        job = await jobs.get(context(request.scope).owner, job_id)
        events = feed.follow(job, last or None)
        if await feed.is_complete(job, last or None):
            # Status 204 tells an EventSource not to reconnect.
            return Response(status_code=204)
        return EventStream(_sse_frames(events))

    @router.websocket("/jobs/{job_id}/ws")
    async def socket(websocket: WebSocket, job_id: str, after: str | None = None) -> None:
        """Follow a job by JSON messages `{"id", "type", "data"}`.

        The socket closes with 1000 after the last event, with 4000 + the HTTP status of an error,
        such as 4404, and with 1008 when the key or session ends.
        """
        await websocket.accept()
        try:
            job = await jobs.get(context(websocket.scope).owner, job_id)
            await _run_while_connected(websocket, _send_all(websocket, feed.follow(job, after)))
        except MoyinError as error:
            await websocket.close(4000 + get_http_status(error), error.code)

    return router


class EventStream(StreamingResponse):
    """Streams server-sent events and closes their source when the response ends."""

    def __init__(self, frames: AsyncGenerator[str, None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames):
            await super().__call__(scope, receive, send)


async def _sse_frames(feed: AsyncGenerator[list[JobEvent], None]) -> AsyncGenerator[str, None]:
    # Sent together with the first event, because every chunk costs time in each layer.
    prefix = f"retry: {_RETRY_MS}\n\n"
    async with aclosing(feed):
        try:
            async for events in feed:
                yield prefix + ("".join(map(_sse_frame, events)) or ": still here\n\n")
                prefix = ""
        except MoyinError as error:
            data = _ascii_json({"code": error.code, "message": error.message})
            yield f"{prefix}event: error\ndata: {data}\n\n"


def _sse_frame(event: JobEvent) -> str:
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.type.value}\ndata: {_ascii_json(event.data)}\n\n"


async def _send_all(websocket: WebSocket, feed: AsyncGenerator[list[JobEvent], None]) -> None:
    async with aclosing(feed):
        async for events in feed:
            for event in events:
                body = {"id": event.id or None, "type": event.type.value, "data": dict(event.data)}
                await websocket.send_text(_ascii_json(body))
    await websocket.close(1000)


async def _run_while_connected(websocket: WebSocket, sending: Any) -> None:
    """Run ``sending`` until it is done or the client disconnects."""
    tasks = [asyncio.create_task(sending), asyncio.create_task(_wait_for_disconnect(websocket))]
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


async def _wait_for_disconnect(websocket: WebSocket) -> None:
    """Discard the client's messages until it disconnects."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue


def _ascii_json(value: Any) -> str:
    # Many clients also split lines at U+2028, which error messages may contain.
    return to_json(value, ensure_ascii=True).decode()
