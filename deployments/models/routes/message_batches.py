"""Serves Anthropic's batches at ``/v1/messages/batches``."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from deployments.files import receive_upload
from moyin.access.gatekeeper import context
from moyin.domain.stored_file import INTERNAL, StoredFile, new_file_id
from moyin.domain.text_batch import BatchDialect, TextBatch
from moyin.errors import (
    BatchFinished,
    BatchNotFinished,
    BatchNotFound,
    InvalidRequest,
    StoredFileNotFound,
)
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.sql import now
from moyin.store.text_batches import TextBatchStore
from moyin.text.protocol.anthropic.batches import (
    MAX_REQUESTS,
    new_batch,
    read_batch_requests,
    render_batch,
    render_deleted_batch,
    render_page,
)

MESSAGE_BATCHES_PATH = "/messages/batches"
_MAX_PAGE = 1_000
_RESULTS_TYPE = "application/x-jsonl"
# Requests are kept this long after the batch was created, in case its workflow starts late.
_REQUESTS_KEPT = timedelta(days=30)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["requests"],
                    "properties": {
                        "requests": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MAX_REQUESTS,
                            "items": {
                                "type": "object",
                                "required": ["custom_id", "params"],
                                "properties": {
                                    "custom_id": {
                                        "type": "string",
                                        "pattern": "^[a-zA-Z0-9_-]{1,64}$",
                                    },
                                    "params": {"type": "object"},
                                },
                            },
                        }
                    },
                }
            }
        },
    }
}


def new_message_batch_routes(
    batches: TextBatchStore,
    files: FileStore,
    blobs: BlobStore,
    public_url: str,
    max_request_bytes: int,
) -> APIRouter:
    """Return the routes of Anthropic's batches.

    Args:
        public_url: the first part of the URL of results; if empty, the address that the client used.
        max_request_bytes: the maximum size of one request of a batch.
    """
    router = APIRouter(prefix=MESSAGE_BATCHES_PATH, tags=["batches"])

    def render_with_url(batch: TextBatch, request: Request) -> dict[str, Any]:
        base_url = public_url or f"{request.url.scheme}://{request.headers.get('host', '')}"
        return render_batch(batch, f"{base_url}/v1{MESSAGE_BATCHES_PATH}/{batch.id}/results")

    async def find_batch(request: Request, batch_id: str) -> TextBatch:
        owner = context(request.scope).owner
        return await batches.get(owner, batch_id, dialect=BatchDialect.ANTHROPIC)

    @router.post(
        "",
        summary="Create a batch of messages",
        description="Answers each of the `requests` like `POST /messages`, below interactive "
        "requests and within 24 hours. The results are lines of JSON.",
        openapi_extra=_BODY,
    )
    async def create_batch(request: Request) -> dict[str, Any]:
        caller = context(request.scope).caller
        file, request_count = await _receive_requests(
            request, caller.owner, blobs, max_request_bytes
        )
        await files.add(file)
        batch = new_batch(caller, file.id, request_count=request_count, created_at=file.created_at)
        try:
            await batches.create(batch)
        except BaseException:
            await files.delete(file.owner, file.id)
            raise
        return render_with_url(batch, request)

    @router.get("", summary="List batches of messages, newest first")
    async def list_batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
        after_id: Annotated[str | None, Query(max_length=64)] = None,
        before_id: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        if after_id is not None and before_id is not None:
            raise InvalidRequest(
                "before_id: must not be used together with after_id", field="before_id"
            )
        try:
            page, has_more = await batches.list_page(
                context(request.scope).owner,
                BatchDialect.ANTHROPIC,
                limit=limit,
                after_id=after_id,
                before_id=before_id,
            )
        except BatchNotFound as error:
            field = "after_id" if after_id is not None else "before_id"
            raise InvalidRequest(f"{field}: {error.message}", field=field) from None
        return render_page([render_with_url(batch, request) for batch in page], has_more=has_more)

    @router.get("/{batch_id}", summary="Show a batch of messages")
    async def get_batch(batch_id: str, request: Request) -> dict[str, Any]:
        return render_with_url(await find_batch(request, batch_id), request)

    @router.post("/{batch_id}/cancel", summary="Cancel a batch of messages")
    async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
        """Cancel a batch: running requests finish, and no more start.

        A batch that has already ended does not change.
        """
        batch = await find_batch(request, batch_id)
        try:
            return render_with_url(await batches.cancel(batch.owner, batch.id), request)
        except BatchFinished:
            # All requests have results, which are written or being written.
            return render_with_url(await find_batch(request, batch_id), request)

    @router.delete("/{batch_id}", summary="Delete a batch of messages that has ended")
    async def delete_batch(batch_id: str, request: Request) -> dict[str, Any]:
        """Delete a batch with its results; 409 `batch_not_finished` while it runs."""
        batch = await find_batch(request, batch_id)
        await batches.delete(batch.owner, batch.id)
        await _delete_files(files, batch)
        return render_deleted_batch(batch.id)

    @router.get(
        "/{batch_id}/results",
        summary="Read the results of a batch of messages",
        response_class=StreamingResponse,
        responses={200: {"content": {_RESULTS_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def get_results(batch_id: str, request: Request) -> StreamingResponse:
        """Return a line of JSON for each request, once the batch has ended."""
        batch = await find_batch(request, batch_id)
        if not batch.status.is_final:
            raise BatchNotFinished(
                "the batch has no results yet; wait until its processing_status is ended"
            )
        return StreamingResponse(await _open_results(files, blobs, batch), media_type=_RESULTS_TYPE)

    return router


async def _receive_requests(
    request: Request, owner: str, blobs: BlobStore, max_request_bytes: int
) -> tuple[StoredFile, int]:
    """Store the requests of a new batch as a blob; return the file and the number of requests."""
    with tempfile.TemporaryDirectory(prefix="moyin-batch-") as folder:
        path = Path(folder) / "requests.jsonl"
        async with receive_upload(request, "requests") as upload:
            request_count = await asyncio.to_thread(
                _write_lines, upload.path, path, max_request_bytes
            )
        blob = await blobs.put_file(path)
    created_at = now()
    file = StoredFile(
        id=new_file_id(),
        owner=owner,
        purpose=INTERNAL,
        filename=path.name,
        media_type=_RESULTS_TYPE,
        size=blob.size,
        sha256=blob.sha256,
        created_at=created_at,
        expires_at=created_at + _REQUESTS_KEPT,
    )
    return file, request_count


async def _delete_files(files: FileStore, batch: TextBatch) -> None:
    for file_id in (batch.input_file_id, batch.output_file_id):
        if file_id is not None and await files.find(batch.owner, file_id) is not None:
            await files.delete(batch.owner, file_id)


async def _open_results(
    files: FileStore, blobs: BlobStore, batch: TextBatch
) -> AsyncIterator[bytes]:
    if batch.output_file_id is None:
        return _yield_no_results()
    file = await files.find(batch.owner, batch.output_file_id)
    if file is None or not await blobs.exists(file.sha256):
        raise StoredFileNotFound(
            "the results of the batch have expired or been deleted: create the batch again"
        )
    return blobs.read_chunks(file.sha256, end=file.size)


async def _yield_no_results() -> AsyncIterator[bytes]:
    return
    yield b""


def _write_lines(body: Path, target: Path, max_request_bytes: int) -> int:
    """Write the requests in a body to a file, one per line; return the number of requests."""
    with body.open("rb") as source, target.open("wb") as lines:
        if not body.stat().st_size:
            raise InvalidRequest(
                "requests must be a list with at least one request", field="requests"
            )
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
            request_count = 0
            for line in read_batch_requests(content, max_request_bytes):
                lines.write(line + b"\n")
                request_count += 1
    return request_count
