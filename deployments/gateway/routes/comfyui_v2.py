"""``/api/v2/jobs``: renders through the Comfy API v2, as the SDK `comfy-sdk` asks for them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from deployments.gateway.routes.events import EventStream
from deployments.gateway.routes.jobs import idempotency_key
from moyin.access.gatekeeper import context
from moyin.comfy_api.jobs_v2 import ComfyJobs, Told
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import labels_of, parse_job
from moyin.comfy_api.protocol_v2.response import V2Presenter, summary_of

__all__ = ["ERRORS", "render_job_routes", "teller_of"]

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


def teller_of(request: Request, retention: timedelta) -> V2Presenter:
    """Tells things with the door's address as this client wrote it."""
    base = request.base_url
    # From anybody: whoever lies here gets addresses that don't work.
    if request.headers.get("x-forwarded-proto") == "https":
        base = base.replace(scheme="https")
    return V2Presenter(base=str(base), retention=retention, now=datetime.now(UTC))


def render_job_routes(renders: ComfyJobs, retention: timedelta) -> APIRouter:
    """The routes of jobs."""
    router = APIRouter(prefix="/api/v2/jobs", tags=["Comfy API v2"], responses=ERRORS)

    @router.post("", status_code=201, openapi_extra=_SUBMIT)
    async def submit(
        request: Request, key: Annotated[str | None, Header(alias="Idempotency-Key")] = None
    ) -> wire.JobBody:
        """Accept a render. It is the same job everywhere else, such as `/jobs/{id}`."""
        spec = parse_job(await request.body())
        job = await renders.submit(context(request.scope).caller, spec, key=idempotency_key(key))
        return teller_of(request, retention).job(job, [])

    @router.get("")
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[str | None, Query(max_length=128)] = None,
    ) -> wire.JobList:
        """Your renders, newest first; `metadata[key]=value` filters by labels."""
        found, following = await renders.page(
            context(request.scope).owner,
            labels=labels_of(request.query_params.multi_items()),
            limit=limit,
            cursor=cursor or None,
        )
        return wire.JobList(jobs=[summary_of(job) for job in found], next_cursor=following)

    @router.get("/{job_id}")
    async def show(request: Request, job_id: str) -> wire.JobBody:
        """A render and the files that it has made."""
        job = await renders.get(context(request.scope).owner, job_id)
        return teller_of(request, retention).job(job, await renders.outputs(job))

    @router.get("/{job_id}/workflow")
    async def workflow(request: Request, job_id: str) -> wire.WorkflowBody:
        """The graph as it was submitted."""
        job = await renders.get(context(request.scope).owner, job_id)
        return wire.WorkflowBody(workflow=dict(await renders.workflow(job)))

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Ask for the end of a render; it is `canceled` a moment later."""
        job = await renders.cancel(context(request.scope).caller, job_id)
        body = teller_of(request, retention).job(job, await renders.outputs(job))
        return body if job.status.is_final else body.model_copy(update={"status": "canceling"})

    @router.get(
        "/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events(request: Request, job_id: str) -> StreamingResponse:
        """Where the render stands and what follows, as server-sent events: `status`, `progress`,
        `output`. Live only; the last one is the final status."""
        job = await renders.get(context(request.scope).owner, job_id)
        return EventStream(_frames(renders.follow(job, teller_of(request, retention))))

    return router


async def _frames(told: AsyncGenerator[Told, None]) -> AsyncGenerator[str, None]:
    async with aclosing(told) as followed:
        async for item in followed:
            if item is None:
                yield ": still here\n\n"
            else:
                name, data = item
                yield f"event: {name}\ndata: {data.model_dump_json()}\n\n"
