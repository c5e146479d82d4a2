"""Defines the routes below ``/jobs``, and below ``/templates``, which jobs can use."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context
from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import render_job, render_job_detail
from moyin.jobs.service import JobService
from moyin.jobs.webhooks import derive_webhook_secret
from moyin.render.templates import wire as template_wire
from moyin.render.templates.catalog import TemplateCatalog
from moyin.render.templates.response import to_response_body
from moyin.store.jobs import JobStore

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_UNCHANGED: dict[int | str, dict[str, str]] = {304: {"description": "`If-None-Match` matches."}}
_JOB_BODY = describe_body({"$ref": "#/components/schemas/JobRequest"})


def job_routes(
    service: JobService, jobs: JobStore, templates: TemplateCatalog, signing_key: bytes
) -> APIRouter:
    """Return the routes of jobs; `job_event_routes` has the routes of their events."""
    router = APIRouter(tags=["jobs"])

    @router.post("/jobs", status_code=202, openapi_extra=_JOB_BODY)
    async def submit(
        request: Request,
        response: Response,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.JobBody:
        """Accept a job and return its id at once. The job survives the failure of any service."""
        caller = context(request.scope).caller
        snapshot = await templates.snapshot()
        job, created = await service.submit_request(
            caller, await request.body(), snapshot.find, now=datetime.now(UTC),
            idempotency_key=validate_idempotency_key(key),
        )  # fmt: skip
        response.headers["location"] = f"/jobs/{job.id}"
        if not created:
            response.headers["idempotent-replayed"] = "true"
        return render_job(job)

    @router.get("/jobs", name="page")
    async def list_jobs(
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

    @router.get("/jobs/webhook-secret", name="secret")
    async def get_webhook_secret(request: Request, response: Response) -> wire.WebhookSecret:
        """Return the secret that signs your webhooks (Standard Webhooks)."""
        response.headers["cache-control"] = "no-store"
        owner = context(request.scope).owner
        return wire.WebhookSecret(secret=derive_webhook_secret(signing_key, owner))

    @router.get("/jobs/{job_id}", name="show")
    async def get_job(request: Request, job_id: str) -> wire.JobDetail:
        """Return a job with the outputs of its finished steps. A batch lists its child jobs."""
        job = await jobs.get(context(request.scope).owner, job_id)
        spec = await service.load_spec(job) if job.children is not None else None
        return render_job_detail(job, await service.load_outputs(job), spec)

    @router.post("/jobs/{job_id}/cancel", status_code=202)
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Cancel a job. Its status becomes `cancelled` a moment later."""
        return render_job(await service.cancel(context(request.scope).caller, job_id))

    @router.post("/jobs/{job_id}/retry", status_code=202)
    async def retry(request: Request, job_id: str) -> wire.JobBody:
        """Continue a failed or cancelled job after its last finished step."""
        return render_job(await service.retry(context(request.scope).caller, job_id))

    return router


def template_routes(templates: TemplateCatalog) -> APIRouter:
    """Return the routes that list and show templates."""
    router = APIRouter(tags=["templates"])

    @router.get(
        "/templates", response_model=template_wire.TemplateList, responses=_UNCHANGED, name="page"
    )
    async def list_templates(
        known: Annotated[str | None, Header(alias="If-None-Match")] = None,
    ) -> Response:
        """List all templates, each with the JSON Schema of its inputs."""
        snapshot = await templates.snapshot()
        digests = "".join(template.digest for template in snapshot.templates)
        body = template_wire.TemplateList(
            templates=[to_response_body(t) for t in snapshot.templates]
        )
        return _cacheable_response(body, hashlib.sha256(digests.encode()).hexdigest(), known)

    @router.get(
        "/templates/{name}",
        response_model=template_wire.TemplateBody,
        responses=_UNCHANGED,
        name="show",
    )
    async def get_template(
        name: str, known: Annotated[str | None, Header(alias="If-None-Match")] = None
    ) -> Response:
        """Return a template by its name or an alias."""
        template = await templates.get(name)
        return _cacheable_response(to_response_body(template), template.digest, known)

    return router


def validate_idempotency_key(header: str | None) -> str | None:
    """Return the value of the header Idempotency-Key if it is valid.

    Raises:
        InvalidRequest: the key is not 1 to 255 visible ASCII characters.
    """
    if header is not None and not _IDEMPOTENCY_KEY.fullmatch(header):
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters", field="Idempotency-Key"
        )
    return header


def _cacheable_response(body: BaseModel, digest: str, known: str | None) -> Response:
    """Return the body, or status 304 if the client's ``If-None-Match`` names the digest."""
    tag = f'"{digest[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and (tag in known or known.strip() == "*"):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)
