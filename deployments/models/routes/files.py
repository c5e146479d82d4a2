"""Serves OpenAI's ``/v1/files``: a tenant's files for batches and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from deployments.files import detect_upload_type, receive_upload
from moyin.access.gatekeeper import context
from moyin.domain.artifact import UNKNOWN_MEDIA_TYPE, sanitize_file_name
from moyin.domain.stored_file import INTERNAL, StoredFile, new_file_id
from moyin.errors import InvalidRequest, StoredFileNotFound
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.sql import now
from moyin.text.protocol.openai.files import (
    UPLOAD_PURPOSES,
    parse_upload_fields,
    render_file,
    render_file_list,
)

FILES_PATH = "/files"
_MAX_PAGE = 10_000
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(UPLOAD_PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3600,
                            "maximum": 2592000,
                        },
                    },
                }
            }
        },
    }
}


def new_file_routes(files: FileStore, blobs: BlobStore) -> APIRouter:
    """Return the routes that store, list, return and delete files."""
    router = APIRouter(prefix=FILES_PATH, tags=["files"])

    @router.post("", summary="Upload a file", openapi_extra=_FORM)
    async def upload_file(request: Request) -> dict[str, Any]:
        """Store the part `file` of a multipart form.

        `purpose` is `batch` for the requests of a batch. Files that prompts reference have the
        purpose `user_data`, `vision` or `assistants`. A batch file expires after 30 days, or after
        `expires_after`.
        """
        content_type = request.headers.get("content-type", "")
        if not content_type.lower().startswith("multipart/form-data"):
            raise InvalidRequest(
                "Content-Type must be multipart/form-data, with the parts file and purpose",
                field="Content-Type",
            )
        async with receive_upload(request, "file") as upload:
            fields = parse_upload_fields(upload.fields)
            media_type = await detect_upload_type(upload, upload.declared)
            blob = await blobs.put_file(upload.path)
        created_at = now()
        file = StoredFile(
            id=new_file_id(),
            owner=context(request.scope).owner,
            purpose=fields.purpose,
            filename=sanitize_file_name(upload.name, media_type),
            media_type=media_type,
            size=blob.size,
            sha256=blob.sha256,
            created_at=created_at,
            expires_at=None if fields.lifetime is None else created_at + fields.lifetime,
        )
        await files.add(file)
        return render_file(file)

    @router.get("", summary="List your files")
    async def list_files(
        request: Request,
        purpose: Annotated[str | None, Query(max_length=32)] = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = _MAX_PAGE,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        """List files, newest first by default.

        `after` is the id of the previous page's last file.
        """
        page, has_more = await files.list_page(
            context(request.scope).owner,
            purpose=purpose,
            limit=limit,
            after_id=after,
            newest_first=order == "desc",
        )
        return render_file_list(page, has_more=has_more)

    @router.get("/{file_id}", summary="Show a file")
    async def get_file(file_id: str, request: Request) -> dict[str, Any]:
        """Return one of your files; 404 `stored_file_not_found` if there is none with this id."""
        return render_file(await _get_visible_file(files, request, file_id))

    @router.get(
        "/{file_id}/content",
        summary="Download the content of a file",
        response_class=StreamingResponse,
        responses={
            200: {"content": {UNKNOWN_MEDIA_TYPE: {"schema": {"type": "string"}}}},
        },
    )
    async def get_content(file_id: str, request: Request) -> StreamingResponse:
        """Return the content of a file, piece by piece."""
        file = await _get_visible_file(files, request, file_id)
        if not await blobs.exists(file.sha256):
            raise StoredFileNotFound(
                f"the content of the file {file_id!r} has been deleted: upload it again"
            )
        chunks = blobs.read_chunks(file.sha256, end=file.size)
        return StreamingResponse(chunks, headers=_build_headers(file))

    @router.delete("/{file_id}", summary="Delete a file")
    async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
        """Delete a file. A running batch that reads the file continues."""
        file = await _get_visible_file(files, request, file_id)
        await files.delete(file.owner, file.id)
        return {"id": file.id, "object": "file", "deleted": True}

    return router


async def _get_visible_file(files: FileStore, request: Request, file_id: str) -> StoredFile:
    file = await files.get(context(request.scope).owner, file_id)
    if file.purpose == INTERNAL:
        raise StoredFileNotFound(
            f"there is no file {file_id[:80]!r}: it may have been deleted; GET /v1/files lists yours"
        )
    return file


def _build_headers(file: StoredFile) -> Mapping[str, str]:
    return {
        "content-type": UNKNOWN_MEDIA_TYPE,
        "content-length": str(file.size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
