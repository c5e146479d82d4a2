"""Defines the routes below ``/api/v2/jobs`` of the Comfy API v2, with which `comfy-sdk` renders."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.event_stream import EventStreamResponse
from deployments.gateway.graph_bodies import read_graph_body
from deployments.gateway.openapi import describe_body
from deployments.gateway.routes.jobs import validate_idempotency_key
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.jobs_v2 import ComfyJobs, SseEvent
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import parse_label_filters
from moyin.comfy_api.protocol_v2.response import V2Presenter, to_summary

_STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 503)
# The error responses that every route of the Comfy API v2 documents.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorEnvelope} for status in _STATUSES
}


def new_presenter(request: Request, retention: timedelta) -> V2Presenter:
    """Return a presenter that builds response bodies with URLs that this client can reach."""
    base_url = request.base_url
    # This header is not verified: a client that forges the value gets unusable URLs.
    if request.headers.get("x-forwarded-proto") == "https":
        base_url = base_url.replace(scheme="https")
    return V2Presenter(base_url=str(base_url), retention=retention, now=datetime.now(UTC))


def new_job_v2_routes(
    renders: ComfyJobs, admission: GraphAdmission, retention: timedelta
) -> APIRouter:
    """Return the routes that submit, list, show, cancel and follow render jobs."""
    router = APIRouter(prefix="/api/v2/jobs", tags=["Comfy API v2"], responses=ERROR_RESPONSES)

    submission_body = describe_body(wire.Submission.model_json_schema())

    @router.post("", status_code=201, openapi_extra=submission_body)
    async def submit(
        request: Request,
        idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.JobBody:
        """Accept a render job. `/jobs/{id}` and ComfyUI's own routes show the same job."""
        caller = context(request.scope).caller
        job = await renders.submit(
            caller,
            await read_graph_body(request, admission.get_bounds(caller)),
            idempotency_key=validate_idempotency_key(idempotency_key),
        )
        return new_presenter(request, retention).to_job_body(job, [])

    @router.get("", name="page")
    async def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[str | None, Query(max_length=128)] = None,
    ) -> wire.JobList:
        """List your render jobs, newest first. `metadata[key]=value` selects jobs with a label."""
        jobs, next_cursor = await renders.list_jobs(
            context(request.scope).owner,
            labels=parse_label_filters(request.query_params.multi_items()),
            limit=limit,
            cursor=cursor or None,
        )
        return wire.JobList(jobs=[to_summary(job) for job in jobs], next_cursor=next_cursor)

    @router.get("/{job_id}", name="show")
    async def get_job(request: Request, job_id: str) -> wire.JobBody:
        """Return a render job, including the files that it has produced."""
        job = await renders.get_job(context(request.scope).owner, job_id)
        return new_presenter(request, retention).to_job_body(job, await renders.list_outputs(job))

    @router.get("/{job_id}/workflow", name="workflow", response_model=wire.WorkflowBody)
    async def get_graph(request: Request, job_id: str) -> Response:
        """Return the graph of a render job as it was submitted."""
        job = await renders.get_job(context(request.scope).owner, job_id)
        return Response(await renders.encode_graph(job), media_type="application/json")

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Cancel a render job. Its status becomes `canceled` a moment later."""
        job = await renders.cancel(context(request.scope).caller, job_id)
        body = new_presenter(request, retention).to_job_body(job, await renders.list_outputs(job))
        return body if job.status.is_final else body.model_copy(update={"status": "canceling"})

    @router.get(
        "/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
        name="events",
    )
    async def follow(request: Request, job_id: str) -> StreamingResponse:
        """Follow a render job to its end by server-sent events: `status`, `progress`, `output`."""
        job = await renders.get_job(context(request.scope).owner, job_id)
        events = renders.follow(job, new_presenter(request, retention))
        return EventStreamResponse(_format_events(events))

    return router


async def _format_events(events: AsyncGenerator[SseEvent, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        async for event in events:
            if event is None:
                yield ": still here\n\n"
            else:
                name, data = event
                yield f"event: {name}\ndata: {data.model_dump_json()}\n\n"
