"""Serves OpenAI's batches at ``/v1/batches``, and the internal route that runs their lines."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from moyin.access.gatekeeper import context
from moyin.domain.stored_file import BATCH_INPUT
from moyin.domain.text_batch import BatchDialect
from moyin.errors import BatchNotFound, InvalidRequest, RouteNotFound, StoredFileNotFound
from moyin.http.validation import parse_object, validate
from moyin.store.files import FileStore
from moyin.store.text_batches import TextBatchStore
from moyin.text.batches.runner import BatchRunner
from moyin.text.protocol.openai.batches import CreateBatch, render_batch, render_batch_page

BATCHES_PATH = "/batches"
# Issuer of the service tokens with which job workers call the internal route.
_WORKER_SERVICE = "jobs"


def new_batch_routes(batches: TextBatchStore, files: FileStore, runner: BatchRunner) -> APIRouter:
    """Return the routes of batches."""
    router = APIRouter(prefix=BATCHES_PATH, tags=["batches"])

    @router.post(
        "",
        summary="Create a batch from a file of requests",
        description="Runs every line of an uploaded file (`purpose: batch`) as a request, below "
        "interactive requests and within 24 hours. Answers and errors are files.",
    )
    async def create_batch(request: Request) -> dict[str, Any]:
        body = validate(CreateBatch, parse_object(await request.body()))
        batch = body.to_domain(context(request.scope).caller)
        try:
            file = await files.get(batch.owner, batch.input_file_id)
        except StoredFileNotFound as error:
            raise InvalidRequest(f"input_file_id: {error.message}", field="input_file_id") from None
        if file.purpose != BATCH_INPUT:
            raise InvalidRequest(
                f"input_file_id: the purpose of the file is {file.purpose!r}; upload it with the "
                f"purpose {BATCH_INPUT!r}",
                field="input_file_id",
            )
        await batches.create(batch)
        return render_batch(batch)

    @router.get("", summary="List batches, newest first")
    async def list_batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        owner = context(request.scope).owner
        try:
            page, has_more = await batches.list_page(
                owner, BatchDialect.OPENAI, limit=limit, after_id=after
            )
        except BatchNotFound as error:
            raise InvalidRequest(f"after: {error.message}", field="after") from None
        return render_batch_page(page, has_more)

    @router.get("/{batch_id}", summary="Show a batch")
    async def get_batch(batch_id: str, request: Request) -> dict[str, Any]:
        owner = context(request.scope).owner
        return render_batch(await batches.get(owner, batch_id, dialect=BatchDialect.OPENAI))

    @router.post(
        "/{batch_id}/cancel",
        summary="Cancel a batch",
        description="Lets running lines end and runs no others. The answers so far are in the "
        "output file.",
    )
    async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
        owner = context(request.scope).owner
        await batches.get(owner, batch_id, dialect=BatchDialect.OPENAI)
        return render_batch(await batches.cancel(owner, batch_id))

    @router.post("/{batch_id}/work", include_in_schema=False)
    async def run_lines(batch_id: str, request: Request) -> dict[str, str]:
        caller = context(request.scope).caller
        if caller.service != _WORKER_SERVICE:
            raise RouteNotFound(f"there is no route {request.url.path}")
        return {"state": await runner.run_lines(batch_id, caller)}

    return router
