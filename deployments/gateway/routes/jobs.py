"""Serves ``/jobs``: submit, list, show, cancel and retry jobs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from moyin.access.gatekeeper import context
from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import render_job, render_job_detail
from moyin.jobs.service import JobService
from moyin.jobs.webhooks import derive_webhook_secret
from moyin.render.templates.catalog import TemplateCatalog
from moyin.store.jobs import JobStore

__all__ = ["idempotency_key", "job_routes"]

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SUBMIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}
_REPLAYED = "idempotent-replayed"


def job_routes(
    service: JobService, jobs: JobStore, templates: TemplateCatalog, signing_key: bytes
) -> APIRouter:
    """Return the routes of jobs, without their events."""
    router = APIRouter(tags=["jobs"])

    @router.post("/jobs", status_code=202, openapi_extra=_SUBMIT)
    async def submit(
        request: Request,
        response: Response,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.JobBody:
        """Accept a job and return its id at once. An accepted job survives any service's failure."""
        caller = context(request.scope).caller
        shelf = await templates.snapshot()
        job, created = await service.submit_request(
            caller,
            await request.body(),
            shelf.find,
            now=datetime.now(UTC),
            idempotency_key=idempotency_key(key),
        )
        response.headers["location"] = f"/jobs/{job.id}"
        if not created:
            response.headers[_REPLAYED] = "true"
        return render_job(job)

    @router.get("/jobs")
    async def page(
        request: Request,
        status: JobStatus | None = None,
        kind: Literal["chat", "render", "http", "pipeline"] | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=128)] = None,
    ) -> wire.JobPage:
        """List your jobs, newest first."""
        owner = context(request.scope).owner
        listed, next_cursor = await jobs.list_page(
            owner, status=status, kind=kind, limit=limit, cursor=cursor
        )
        return wire.JobPage(jobs=[render_job(job) for job in listed], next_cursor=next_cursor)

    @router.get("/jobs/webhook-secret")
    async def secret(request: Request, response: Response) -> wire.WebhookSecret:
        """Return the secret that signs your webhooks (Standard Webhooks)."""
        response.headers["cache-control"] = "no-store"
        owner = context(request.scope).owner
        return wire.WebhookSecret(secret=derive_webhook_secret(signing_key, owner))

    @router.get("/jobs/{job_id}")
    async def show(request: Request, job_id: str) -> wire.JobDetail:
        """Return a job with the outputs of its finished steps, and the children of a batch."""
        job = await jobs.get(context(request.scope).owner, job_id)
        spec = await service.load_spec(job) if job.children is not None else None
        return render_job_detail(job, await service.load_outputs(job), spec)

    @router.post("/jobs/{job_id}/cancel", status_code=202)
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Cancel a job; its status becomes `cancelled` a moment later."""
        return render_job(await service.cancel(context(request.scope).caller, job_id))

    @router.post("/jobs/{job_id}/retry", status_code=202)
    async def retry(request: Request, job_id: str) -> wire.JobBody:
        """Continue a failed or cancelled job after its last finished step."""
        return render_job(await service.retry(context(request.scope).caller, job_id))

    return router


def idempotency_key(header: str | None) -> str | None:
    """Validate and return the Idempotency-Key.

    Raises:
        InvalidRequest: the key is not 1 to 255 visible ASCII characters.
    """
    if header is not None and not _IDEMPOTENCY_KEY.fullmatch(header):
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters", field="Idempotency-Key"
        )
    return header
