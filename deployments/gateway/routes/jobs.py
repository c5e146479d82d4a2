"""Defines the routes of jobs, ``/jobs``, and of the templates that jobs can use, ``/templates``."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context
from moyin.errors import InvalidRequest
from moyin.jobs.history import JobHistory
from moyin.jobs.newest_jobs import view_queue
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.filters import (
    JobFilterBody,
    JobsQuery,
    describe_query,
    parse_bulk_request,
    parse_jobs_query,
)
from moyin.jobs.protocol.response import QueueView, render_job, render_job_detail
from moyin.jobs.queue_places import QueuePlaceCache
from moyin.jobs.service import JobService
from moyin.jobs.webhooks import derive_webhook_secret
from moyin.render.templates import wire as template_wire
from moyin.render.templates.catalog import TemplateCatalog
from moyin.render.templates.response import to_response_body
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_UNCHANGED: dict[int | str, dict[str, str]] = {304: {"description": "`If-None-Match` matches."}}
_JOBS_QUERY = describe_query(JobsQuery)
_BULK_BODY = describe_body({"$ref": "#/components/schemas/BulkRequest"})
_JOB_BODY = describe_body({"$ref": "#/components/schemas/JobRequest"})


def new_job_routes(
    service: JobService,
    jobs: JobStore,
    templates: TemplateCatalog,
    signing_key: bytes,
    places: QueuePlaceCache,
) -> APIRouter:
    """Return the routes of jobs; `new_job_event_routes` has the routes of their events."""
    router = APIRouter(tags=["jobs"])
    history = JobHistory(service, jobs)

    async def to_filter(body: JobFilterBody) -> JobFilter:
        aliases = {} if body.template is None else (await templates.get_snapshot()).aliases
        return body.to_domain(aliases)

    @router.post("/jobs", status_code=202, openapi_extra=_JOB_BODY)
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.JobBody:
        """Accept a job and return its id. The job survives the failure of any service."""
        caller = context(request.scope).caller
        snapshot = await templates.get_snapshot()
        job, is_new = await service.submit_request(
            caller, await request.body(), snapshot.find, now=datetime.now(UTC),
            idempotency_key=validate_idempotency_key(idempotency_key),
        )  # fmt: skip
        response.headers["location"] = f"/jobs/{job.id}"
        if not is_new:
            response.headers["idempotent-replayed"] = "true"
        return render_job(job, QueueView(now=datetime.now(UTC)))

    @router.get("/jobs", name="page", summary="List jobs by filters", openapi_extra=_JOBS_QUERY)
    async def list_jobs(request: Request) -> wire.JobPage:
        """List your jobs, newest first.

        Pages filtered by pool, template, metadata or search text may have fewer jobs than `limit`,
        or none, although `next_cursor` is not null.
        """
        query = parse_jobs_query(request.query_params.multi_items())
        page_jobs, next_cursor = await jobs.list_page(
            context(request.scope).owner,
            await to_filter(query),
            limit=query.limit,
            cursor=query.cursor,
        )
        queue_view = await view_queue(places, page_jobs)
        return wire.JobPage(
            jobs=[render_job(job, queue_view) for job in page_jobs], next_cursor=next_cursor
        )

    @router.post("/jobs/cancel", summary="Cancel jobs by a filter", openapi_extra=_BULK_BODY)
    async def cancel_jobs(request: Request) -> wire.BulkBody:
        """Cancel the queued and running jobs that match a filter, up to 10,000 per request."""
        body = parse_bulk_request(await request.body())
        result = await history.cancel_matching(
            context(request.scope).caller,
            await to_filter(body.filter),
            dry_run=body.dry_run,
            cursor=body.cursor,
        )
        return wire.BulkBody(**asdict(result), dry_run=body.dry_run)

    @router.post("/jobs/delete", summary="Delete jobs by a filter", openapi_extra=_BULK_BODY)
    async def delete_jobs(request: Request) -> wire.BulkBody:
        """Delete the ended jobs that match a filter with their files, up to 10,000 per request."""
        body = parse_bulk_request(await request.body())
        result = await history.delete_matching(
            context(request.scope).caller,
            await to_filter(body.filter),
            dry_run=body.dry_run,
            cursor=body.cursor,
        )
        return wire.BulkBody(**asdict(result), dry_run=body.dry_run)

    @router.get("/jobs/webhook-secret", name="secret")
    async def get_webhook_secret(request: Request, response: Response) -> wire.WebhookSecret:
        """Return the secret that signs your webhooks (Standard Webhooks)."""
        response.headers["cache-control"] = "no-store"
        owner = context(request.scope).owner
        return wire.WebhookSecret(secret=derive_webhook_secret(signing_key, owner))

    @router.get("/jobs/{job_id}", name="show", response_model=wire.JobDetail)
    async def get_job(request: Request, job_id: str) -> Response:
        """Return a job with its submitted spec and the outputs of its finished steps.

        A batch lists its child jobs.
        """
        job = await jobs.get(context(request.scope).owner, job_id)
        # Only the spec has the inputs of the children of a batch.
        load_spec = service.load_small_spec if job.children is None else service.load_spec
        spec, outputs = await asyncio.gather(load_spec(job), service.load_outputs(job))
        queue_view = await view_queue(places, [job])
        content = await service.encode_detail(
            job, lambda: render_job_detail(job, outputs, spec, queue_view)
        )
        return Response(content, media_type="application/json")

    @router.get(
        "/jobs/{job_id}/graph",
        name="graph",
        summary="Return the graph of a render",
        response_model=dict[str, Any],
    )
    async def get_graph(
        request: Request, job_id: str, step: Annotated[int, Query(ge=0, le=10_000)] = 0
    ) -> Response:
        """Return the graph of a render, in the format of the member `workflow` of a job request.

        For a batch, `step` is the index of the child job.
        """
        job = await jobs.get(context(request.scope).owner, job_id)
        content = await history.encode_graph(job, step)
        return Response(content, media_type="application/json")

    @router.delete("/jobs/{job_id}", status_code=204, summary="Delete an ended job")
    async def delete(request: Request, job_id: str) -> Response:
        """Delete an ended job with its events and files."""
        await history.delete(context(request.scope).owner, job_id)
        return Response(status_code=204)

    @router.post("/jobs/{job_id}/cancel", status_code=202)
    async def cancel(request: Request, job_id: str) -> wire.JobBody:
        """Cancel a job. Its status becomes `cancelled` a moment later, unless the job ends first.

        In both cases the member `cancel_requested_by` shows that a cancellation was requested. A
        job that has already ended gets 409 `job_finished`.
        """
        job = await service.cancel(context(request.scope).caller, job_id)
        return render_job(job, QueueView(now=datetime.now(UTC)))

    @router.post("/jobs/{job_id}/retry", status_code=202)
    async def retry(request: Request, job_id: str) -> wire.JobBody:
        """Continue a failed or cancelled job after its last finished step."""
        job = await service.retry(context(request.scope).caller, job_id)
        return render_job(job, QueueView(now=datetime.now(UTC)))

    return router


def new_template_routes(templates: TemplateCatalog) -> APIRouter:
    """Return the routes that list and show templates."""
    router = APIRouter(tags=["templates"])

    @router.get(
        "/templates", response_model=template_wire.TemplateList, responses=_UNCHANGED, name="page"
    )
    async def list_templates(
        known_etag: Annotated[str | None, Header(alias="If-None-Match")] = None,
    ) -> Response:
        """List all templates, each with the JSON Schema of its inputs."""
        snapshot = await templates.get_snapshot()
        digests = "".join(template.digest for template in snapshot.templates)
        body = template_wire.TemplateList(
            templates=[to_response_body(t) for t in snapshot.templates]
        )
        return _build_cacheable_response(
            body, hashlib.sha256(digests.encode()).hexdigest(), known_etag
        )

    @router.get(
        "/templates/{name}",
        response_model=template_wire.TemplateBody,
        responses=_UNCHANGED,
        name="show",
    )
    async def get_template(
        name: str, known_etag: Annotated[str | None, Header(alias="If-None-Match")] = None
    ) -> Response:
        """Return a template by its name or an alias."""
        template = await templates.get(name)
        return _build_cacheable_response(to_response_body(template), template.digest, known_etag)

    return router


def validate_idempotency_key(header: str | None) -> str | None:
    """Return the value of the header Idempotency-Key, or None if the client did not send it.

    Raises:
        InvalidRequest: the key is not 1 to 255 visible ASCII characters.
    """
    if header is not None and not _IDEMPOTENCY_KEY.fullmatch(header):
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters", field="Idempotency-Key"
        )
    return header


def _build_cacheable_response(body: BaseModel, digest: str, known_etag: str | None) -> Response:
    """Return the body, or status 304 if the client's ``If-None-Match`` names the digest."""
    etag = f'"{digest[:32]}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if known_etag is not None and (etag in known_etag or known_etag.strip() == "*"):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)
