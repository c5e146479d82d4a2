"""Defines the routes that send a job's events as server-sent events or by a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from deployments.event_stream import EventStreamResponse
from moyin.access.gatekeeper import context, get_http_status
from moyin.domain.job import JobEvent
from moyin.errors import MoyinError
from moyin.jobs.feed import JobFeed
from moyin.jobs.protocol.event_bodies import StreamError
from moyin.store.jobs import JobStore

_RETRY_MS = 2_000
_EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events with the members of `JobEvent`: `type` as the event's name, `data` as "
        "JSON, `id`. An event `error` with the data `StreamError` ends the stream, not the job.",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/JobEvent"}}},
    },
    204: {"description": "No event follows that of `Last-Event-ID`."},
}


def job_event_routes(jobs: JobStore, feed: JobFeed) -> APIRouter:
    """Return the routes by which clients follow a job."""
    router = APIRouter(tags=["jobs"])

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses=_EVENT_RESPONSES,
    )
    async def follow(
        request: Request,
        job_id: str,
        last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
        last_event_id: str | None = None,
    ) -> Response:
        """Follow a job to its end by server-sent events.

        The header `Last-Event-ID`, or else the query's `last_event_id`, resumes a stream.
        """
        job = await jobs.get(context(request.scope).owner, job_id)
        # The header counts first: an EventSource that reconnects repeats the query as it was.
        after = last or last_event_id or None
        events = feed.follow(job, after)
        if await feed.is_complete(job, after):
            # Status 204 tells an EventSource not to reconnect.
            return Response(status_code=204)
        request_id = context(request.scope).request_id
        return EventStreamResponse(_format_events(events, request_id))

    @router.websocket("/jobs/{job_id}/ws")
    async def follow_by_websocket(
        websocket: WebSocket,
        job_id: str,
        after: str | None = None,
        last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
        last_event_id: str | None = None,
    ) -> None:
        """Follow a job to its end by JSON messages `{"id", "type", "data"}`.

        The header `Last-Event-ID`, or else `last_event_id` or `after` in the query, resumes.

        The socket closes with 1000 after the last event, with 4000 + the HTTP status of an error,
        such as 4404, and with 1008 when the key or session ends.
        """
        await websocket.accept()
        try:
            job = await jobs.get(context(websocket.scope).owner, job_id)
            sending = _send_all(websocket, feed.follow(job, last or last_event_id or after or None))
            await run_until_disconnect(sending, _wait_for_disconnect(websocket))
        except MoyinError as error:
            await websocket.close(4000 + get_http_status(error), error.code)

    return router


async def _format_events(
    feed: AsyncGenerator[list[JobEvent], None], request_id: str
) -> AsyncGenerator[str, None]:
    # Sent together with the first event, because each chunk costs time in each layer.
    prefix = f"retry: {_RETRY_MS}\n\n"
    async with aclosing(feed):
        try:
            async for events in feed:
                yield prefix + ("".join(map(_format_event, events)) or ": still here\n\n")
                prefix = ""
        except MoyinError as error:
            body = StreamError(code=error.code, message=error.message, request_id=request_id)
            yield f"{prefix}event: error\ndata: {_ascii_json(body)}\n\n"


def _format_event(event: JobEvent) -> str:
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.type.value}\ndata: {_ascii_json(event.data)}\n\n"


async def _send_all(websocket: WebSocket, feed: AsyncGenerator[list[JobEvent], None]) -> None:
    async with aclosing(feed):
        async for events in feed:
            for event in events:
                body = {"id": event.id or None, "type": event.type.value, "data": dict(event.data)}
                await websocket.send_text(_ascii_json(body))
    await websocket.close(1000)


async def run_until_disconnect(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run the coroutines of a WebSocket until one ends, fails, or finds the client disconnected."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except WebSocketDisconnect:
        return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_disconnect(websocket: WebSocket) -> None:
    """Discard the messages of the client until the client disconnects."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue


def _ascii_json(value: Any) -> str:
    # Many clients also split lines at U+2028, which error messages may contain.
    return to_json(value, ensure_ascii=True).decode()
