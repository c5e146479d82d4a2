"""``/artifacts``: uploads in, stored files out, both as streams."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from deployments.gateway.routes.jobs import idempotency_key
from moyin import media
from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, IdempotencyMismatch, InvalidRequest
from moyin.gatekeeper import context
from moyin.protocols.jobs import wire
from moyin.protocols.jobs.translate import artifact_body
from moyin.store.artifacts import ArtifactStore, new_artifact_id
from moyin.store.blobs import BlobStore

__all__ = ["artifact_routes"]

_CHUNK = 256 * 1024
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": _BINARY["schema"]},
                }
            },
        },
    }
}


def artifact_routes(artifacts: ArtifactStore, blobs: BlobStore) -> APIRouter:
    """The routes of stored files."""
    router = APIRouter(tags=["artifacts"])

    @router.post("/artifacts", status_code=201, openapi_extra=_UPLOAD)
    async def upload(
        request: Request,
        response: Response,
        name: Annotated[str | None, Query(max_length=1024)] = None,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.ArtifactBody:
        """Store a file: the body itself, or the part `file` of a multipart form."""
        owner = context(request.scope).owner
        artifact_id = _artifact_id(owner, idempotency_key(key))
        with tempfile.TemporaryDirectory(prefix="moyin-upload-") as folder:
            path = Path(folder) / "content"
            declared, given = await _receive(request, path)
            artifact = await _stored(blobs, path, artifact_id, declared, name or given)
        if key is not None and await _known(artifacts, owner, artifact):
            response.headers["idempotent-replayed"] = "true"
        else:
            await artifacts.add(artifact, owner=owner)
        body = artifact_body(artifact)
        response.headers["location"] = body.url
        return body

    async def serve(request: Request, artifact_id: str) -> Response:
        artifact = await artifacts.get(context(request.scope).owner, artifact_id)
        if not await blobs.exists(artifact.sha256):
            raise ArtifactNotFound(f"the content of artifact {artifact_id!r} is gone")
        return _answer(request, artifact, blobs)

    @router.get("/artifacts/{artifact_id}", response_class=StreamingResponse)
    async def download(request: Request, artifact_id: str) -> Response:
        """The file. Understands `Range` and `If-None-Match`."""
        return await serve(request, artifact_id)

    @router.head("/artifacts/{artifact_id}", include_in_schema=False)
    async def describe(request: Request, artifact_id: str) -> Response:
        return await serve(request, artifact_id)

    return router


def _artifact_id(owner: str, key: str | None) -> str:
    """Random, or derived from the Idempotency-Key, which makes a repeat find the first."""
    if key is None:
        return new_artifact_id()
    digest = hashlib.sha256("\0".join((owner, key)).encode()).hexdigest()
    return f"art_{digest[:32]}"


async def _known(artifacts: ArtifactStore, owner: str, artifact: Artifact) -> bool:
    try:
        known = await artifacts.get(owner, artifact.id)
    except ArtifactNotFound:
        return False
    if known.sha256 != artifact.sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another file; use a new key",
            field="Idempotency-Key",
        )
    return True


async def _receive(request: Request, path: Path) -> tuple[str | None, str | None]:
    """Write the upload to ``path``; returns its declared media type and name."""
    declared = request.headers.get("content-type")
    if declared is None or not declared.lower().startswith("multipart/form-data"):
        await _write(request.stream(), path)
        return declared, None
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidRequest("the form has no file called `file`", field="file")
            await _write(_chunks(file), path)
            return file.content_type, file.filename
    except MultiPartException as error:
        raise InvalidRequest(f"the multipart body is broken: {error.message}") from None


async def _write(chunks: AsyncIterator[bytes], path: Path) -> None:
    async with await anyio.open_file(path, "wb") as file:
        async for chunk in chunks:
            await file.write(chunk)


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK):
        yield chunk


async def _stored(
    blobs: BlobStore, path: Path, artifact_id: str, declared: str | None, name: str | None
) -> Artifact:
    async with await anyio.open_file(path, "rb") as file:
        head = await file.read(media.SNIFF_BYTES)
    if not head:
        raise InvalidRequest("the file is empty", field="file")
    kind = media.media_type(declared, head)
    blob = await blobs.put_file(path)
    return Artifact(
        id=artifact_id,
        name=media.clean_name(name, kind),
        media_type=kind,
        size=blob.size,
        sha256=blob.sha256,
    )


def _answer(request: Request, artifact: Artifact, blobs: BlobStore) -> Response:
    headers = dict(media.serving_headers(artifact))
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    part = _part(request, headers, artifact.size)
    start, end = part or (0, artifact.size)
    if part is not None and start == end:
        return Response(status_code=416, headers={"content-range": f"bytes */{artifact.size}"})
    status = 200
    if part is not None:
        status = 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    headers["content-length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    content = blobs.read(artifact.sha256, start=start, end=end)
    return StreamingResponse(content, status, headers)


def _part(request: Request, headers: Mapping[str, str], size: int) -> tuple[int, int] | None:
    condition = request.headers.get("if-range")
    if condition is not None and condition != headers["etag"]:
        return None
    return media.byte_range(request.headers.get("range"), size)
