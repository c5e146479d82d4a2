"""Defines the routes that send a job's events as server-sent events or by a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from deployments.event_stream import EventStreamResponse
from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context, get_http_status
from moyin.access.gatekeeper.asgi import Scope
from moyin.access.gatekeeper.tokens import create_event_token
from moyin.domain.job import Job, JobEvent
from moyin.errors import JobNotFound, MoyinError, PreviewNotFound
from moyin.http.validation import parse_object, validate
from moyin.jobs.feed import JobFeed
from moyin.jobs.previews import PreviewFeed
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.event_bodies import StreamError
from moyin.store.jobs import JobStore
from moyin.store.sql import now

_RETRY_MS = 2_000
_EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events of `JobEvent`: `type` is the event's name, `data` is JSON. An event "
        "`error` ends the stream, not the job.",
        "content": {
            "text/event-stream": {"schema": {"$ref": "#/components/schemas/ServerSentEvent"}}
        },
    },
    204: {"description": "No event follows that of `Last-Event-ID`."},
}
_Previews = Annotated[bool, Query(alias="previews", description="Also send `preview` events.")]
_PREVIEW_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "sandbox; default-src 'none'",
    "cross-origin-resource-policy": "cross-origin",
}


def new_job_event_routes(
    jobs: JobStore, feed: JobFeed, previews: PreviewFeed, signing_key: bytes
) -> APIRouter:
    """Return the routes by which clients follow a job."""
    router = APIRouter(tags=["jobs"])

    async def get_readable_job(scope: Scope, job_id: str) -> Job:
        """Return a job that the caller may read by a key or an event token."""
        reader = context(scope).reader
        if not reader.may_read_job(job_id):
            raise JobNotFound(
                f"job {job_id!r} does not exist, or you may not see it; GET /jobs lists yours"
            )
        return await jobs.get(reader.owner, job_id)

    def open_feed(
        job: Job, after: str | None, with_previews: bool
    ) -> AsyncGenerator[list[JobEvent], None]:
        events = feed.follow(job, after)
        return (
            previews.add_previews(job, events)
            if with_previews and not job.status.is_final
            else events
        )

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses=_EVENT_RESPONSES,
    )
    async def follow(
        request: Request,
        job_id: str,
        last_event_header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
        last_event_id: str | None = None,
        with_previews: _Previews = False,
    ) -> Response:
        """Follow a job to its end by server-sent events.

        To resume a stream, send the id of the last received event in the header `Last-Event-ID` or
        in the query parameter `last_event_id`. Web pages, which cannot send a key, send an event
        token as `?token=`.
        """
        job = await get_readable_job(request.scope, job_id)
        # The header takes precedence, because an EventSource that reconnects repeats the original
        # query.
        after = last_event_header or last_event_id or None
        events = open_feed(job, after, with_previews)
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
        last_event_header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
        last_event_id: str | None = None,
        with_previews: _Previews = False,
    ) -> None:
        """Follow a job to its end by JSON messages `{"id", "type", "data"}`.

        To resume, send the id of the last received event in the header `Last-Event-ID`, or in the
        query parameter `last_event_id` or `after`.

        The socket closes with code 1000 after the last event, at once if the client has that event;
        with 4000 + the HTTP status after an error (such as 4404); and with 1008 when the key or
        session ends.
        """
        await websocket.accept()
        try:
            job = await get_readable_job(websocket.scope, job_id)
            last_id = last_event_header or last_event_id or after or None
            events = open_feed(job, last_id, with_previews)
            if await feed.is_complete(job, last_id):
                await websocket.close(1000)
                return
            await run_until_disconnect(
                _send_events(websocket, events), _wait_for_disconnect(websocket)
            )
        except MoyinError as error:
            await websocket.close(4000 + get_http_status(error), error.code)

    @router.get(
        "/jobs/{job_id}/preview",
        name="preview",
        summary="Return the newest preview of a render",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in ("image/jpeg", "image/png")}}},
    )
    async def get_preview(
        request: Request,
        job_id: str,
        number: Annotated[
            str | None,
            Query(max_length=32, description="Ignored: makes the address of each preview unique."),
        ] = None,
    ) -> Response:
        """Return the newest preview picture of a running render, for a minute after it was made.

        Previews are kept only while a client follows the job with `?previews=true`, or requests
        this path at least every fifteen seconds.
        """
        preview = await previews.find_newest(await get_readable_job(request.scope, job_id))
        if preview is None:
            raise PreviewNotFound(
                f"job {job_id!r} has no preview now; follow the running job with ?previews=true"
            )
        media_type, picture = preview
        return Response(picture, media_type=media_type, headers=_PREVIEW_HEADERS)

    @router.post(
        "/jobs/{job_id}/token",
        name="token",
        summary="Create a token for pages that follow a job",
        openapi_extra=describe_body(wire.TokenRequest.model_json_schema(), is_required=False),
    )
    async def create_token(request: Request, response: Response, job_id: str) -> wire.TokenBody:
        """Return a token with which a page can read the job's events, previews and files.

        The page sends the token as `?token=` with `EventSource`, `WebSocket` and `<img>`. The token
        is valid until `expires_at`, but not longer than the key or session that created it.
        """
        caller = context(request.scope).caller
        token_request = validate(wire.TokenRequest, parse_object(await request.body() or b"{}"))
        job = await jobs.get(caller.owner, job_id)
        expires_at = now() + timedelta(seconds=token_request.expires_in)
        token = create_event_token(signing_key, caller, job.id, token_request.expires_in)
        response.headers["cache-control"] = "no-store"
        return wire.TokenBody(token=token, expires_at=expires_at.replace(microsecond=0))

    return router


async def _format_events(
    event_batches: AsyncGenerator[list[JobEvent], None], request_id: str
) -> AsyncGenerator[str, None]:
    # Sent together with the first event, because each chunk costs time in each layer.
    prefix = f"retry: {_RETRY_MS}\n\n"
    async with aclosing(event_batches):
        try:
            async for events in event_batches:
                yield prefix + ("".join(map(_format_event, events)) or ": still here\n\n")
                prefix = ""
        except MoyinError as error:
            body = StreamError(code=error.code, message=error.message, request_id=request_id)
            yield f"{prefix}event: error\ndata: {_to_ascii_json(body)}\n\n"


def _format_event(event: JobEvent) -> str:
    id_line = f"id: {event.id}\n" if event.id else ""
    return f"{id_line}event: {event.type.value}\ndata: {_to_ascii_json(event.data)}\n\n"


async def _send_events(
    websocket: WebSocket, event_batches: AsyncGenerator[list[JobEvent], None]
) -> None:
    async with aclosing(event_batches):
        async for events in event_batches:
            for event in events:
                body = {"id": event.id or None, "type": event.type.value, "data": dict(event.data)}
                await websocket.send_text(_to_ascii_json(body))
    await websocket.close(1000)


async def run_until_disconnect(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run the coroutines of a WebSocket until one returns, fails or detects a disconnect."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done_tasks, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done_tasks:
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


def _to_ascii_json(value: Any) -> str:
    # Many clients also split lines at U+2028, which error messages may contain.
    return to_json(value, ensure_ascii=True).decode()
