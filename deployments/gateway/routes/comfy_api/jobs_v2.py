"""Serves ``/api/v2/jobs``: renders through the Comfy API v2, which the SDK `comfy-sdk` uses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from deployments.gateway.routes.job_events import EventStream
from deployments.gateway.routes.jobs import idempotency_key
from moyin.access.gatekeeper import context
from moyin.comfy_api.jobs_v2 import ComfyJobs, SseEvent
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import labels_of, parse_job
from moyin.comfy_api.protocol_v2.response import V2Presenter, summary_of

__all__ = ["ERRORS", "job_v2_routes", "presenter_for"]

_STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 503)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorEnvelope} for status in _STATUSES
}
_SUBMIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": wire.Submission.model_json_schema()}},
    }
}


def presenter_for(request: Request, retention: timedelta) -> V2Presenter:
    """Return a presenter whose URLs begin with the gateway's address as the client wrote it."""
    base = request.base_url
    # Any client may set this header: with a false value it only gets URLs that do not work.
    if request.headers.get("x-forwarded-proto") == "https":
        base = base.replace(scheme="https")
    return V2Presenter(base=str(base), retention=retention, now=datetime.now(UTC))


def job_v2_routes(renders: ComfyJobs, retention: timedelta) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(prefix="/api/v2/jobs", tags=["Comfy API v2"], responses=ERRORS)

    @router.post("", status_code=201, openapi_extra=_SUBMIT)
    async def submit(
        request: Request, key: Annotated[str | None, Header(alias="Idempotency-Key")] = None
    ) -> wire.JobBody:
        """Accept a render. `/jobs/{id}` and all other routes show the same job."""
        spec = parse_job(await request.body())
        job = await renders.submit(context(request.scope).caller, spec, key=idempotency_key(key))
        return presenter_for(request, retention).job(job, [])

    @router.get("")
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[str | None, Query(max_length=128)] = None,
    ) -> wire.JobList:
        """List your renders, newest first; `metadata[key]=value` filters by labels."""
        jobs, next_cursor = await renders.page(
            context(request.scope).owner,
            labels=labels_of(request.query_params.multi_items()),
            limit=limit,
            cursor=cursor or None,
        )
        return wire.JobList(jobs=[summary_of(job) for job in jobs], next_cursor=next_cursor)

    @router.get("/{job_id}")
    async def show(request: Request, job_id: str) -> wire.JobBody:
        """Return a render and the files that it has produced."""
        job = await renders.get(context(request.scope).owner, job_id)
        return presenter_for(request, retention).job(job, await renders.outputs(job))

    @router.get("/{job_id}/workflow")
    async def workflow(request: Request, job_id: str) -> wire.WorkflowBody:
        """Return the graph as it was submitted."""
        job = await renders.get(context(request.scope).owner, job_id)
        return wire.WorkflowBody(workflow=dict(await renders.workflow(job)))

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Cancel a render; its status becomes `canceled` a moment later."""
        job = await renders.cancel(context(request.scope).caller, job_id)
        body = presenter_for(request, retention).job(job, await renders.outputs(job))
        return body if job.status.is_final else body.model_copy(update={"status": "canceling"})

    @router.get(
        "/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events(request: Request, job_id: str) -> StreamingResponse:
        """Follow a render until its end by server-sent events: `status`, `progress`, `output`."""
        job = await renders.get(context(request.scope).owner, job_id)
        return EventStream(_sse_frames(renders.follow(job, presenter_for(request, retention))))

    return router


async def _sse_frames(events: AsyncGenerator[SseEvent, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        async for event in events:
            if event is None:
                yield ": still here\n\n"
            else:
                name, data = event
                yield f"event: {name}\ndata: {data.model_dump_json()}\n\n"
