"""Receives uploaded files from requests, and sends stored files in responses."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from blake3 import blake3
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from moyin.access.gatekeeper import context
from moyin.domain.artifact import SNIFF_BYTES, Artifact, detect_media_type, sanitize_file_name
from moyin.errors import ArtifactNotFound, InvalidRequest
from moyin.http.headers import build_file_headers, parse_byte_range
from moyin.store.blobs import BlobStore

_CHUNK = 256 * 1024
_MAX_FIELDS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An uploaded file that has been received into a temporary local file.

    Attributes:
        path: the path of the temporary file.
        declared, name: the media type and the file name that the client sent.
        fields: the text fields of the form by name; the last field counts if a name repeats.
    """

    path: Path
    declared: str | None
    name: str | None
    fields: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def receive_upload(request: Request, part_name: str) -> AsyncIterator[Upload]:
    """Receive an uploaded file, which is deleted when the context ends.

    Args:
        part_name: the name of the file's part in a multipart form. Any other body is the file
            itself.

    Raises:
        InvalidRequest: the multipart form is malformed, or has no file part of this name.
    """
    with tempfile.TemporaryDirectory(prefix="moyin-upload-") as folder:
        yield await _receive_to_file(request, part_name, Path(folder) / "content")


async def store_upload(
    blobs: BlobStore,
    upload: Upload,
    artifact_id: str,
    *,
    owner: str,
    require_room: Callable[[str, int], Awaitable[None]],
    name: str | None,
    declared_type: str | None,
) -> Artifact:
    """Store the content of an upload, and return its artifact, whose row the caller must insert.

    Args:
        require_room: raises `FileStorageFull` if a tenant has no room for so many bytes. Called
            before the content is stored, since what is stored in vain stays for a day.
        name: the file name of the artifact; if None, a name is made.
        declared_type: the media type of the artifact; if None, the content determines it.

    Raises:
        InvalidRequest: the file is empty, or ``declared_type`` is not a media type.
        FileStorageFull: the tenant has no room for the upload.
    """
    media_type = await detect_upload_type(upload, declared_type)
    await require_room(owner, (await anyio.Path(upload.path).stat()).st_size)
    blob = await blobs.put_file(upload.path)
    return Artifact(
        id=artifact_id, name=sanitize_file_name(name, media_type), media_type=media_type, size=blob.size,
        sha256=blob.sha256, blake3=await asyncio.to_thread(_hash_blake3, upload.path),
    )  # fmt: skip


async def detect_upload_type(upload: Upload, declared_type: str | None) -> str:
    """Return the media type that the client declared; if it is None, detect it from the content.

    Raises:
        InvalidRequest: the file is empty, or ``declared_type`` is not a media type.
    """
    async with await anyio.open_file(upload.path, "rb") as file:
        first_bytes = await file.read(SNIFF_BYTES)
    if not first_bytes:
        raise InvalidRequest("the file is empty: upload at least one byte", field="file")
    return detect_media_type(declared_type, first_bytes)


async def build_artifact_response(
    request: Request, artifact: Artifact, blobs: BlobStore
) -> Response:
    """Return a response with the artifact's content, or with the range that the client requested.

    Raises:
        ArtifactNotFound: the artifact's blob has been deleted.
    """
    if not await blobs.exists(artifact.sha256):
        raise ArtifactNotFound(
            f"the content of artifact {artifact.id!r} has been deleted: upload it again"
        )
    return _stream_response(request, artifact, blobs)


async def _receive_to_file(request: Request, part_name: str, path: Path) -> Upload:
    context(request.scope).keeps_body = False
    declared_type = request.headers.get("content-type")
    if declared_type is None or not declared_type.lower().startswith("multipart/form-data"):
        await _write_chunks(request.stream(), path)
        return Upload(path=path, declared=declared_type, name=None)
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            file = form.get(part_name)
            if not isinstance(file, UploadFile):
                raise InvalidRequest(
                    f"the form must have a file part named `{part_name}`", field=part_name
                )
            await _write_chunks(_read_chunks(file), path)
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return Upload(path=path, declared=file.content_type, name=file.filename, fields=fields)
    except MultiPartException as error:
        raise InvalidRequest(f"the multipart body is malformed: {error.message}") from None


def _hash_blake3(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest()


async def _write_chunks(chunks: AsyncIterator[bytes], path: Path) -> None:
    async with await anyio.open_file(path, "wb") as file:
        async for chunk in chunks:
            await file.write(chunk)


async def _read_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK):
        yield chunk


def _stream_response(request: Request, artifact: Artifact, blobs: BlobStore) -> Response:
    headers = dict(build_file_headers(artifact))
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    byte_range = _parse_requested_range(request, headers, artifact.size)
    start, end = byte_range or (0, artifact.size)
    if byte_range is not None and start == end:
        return Response(status_code=416, headers={"content-range": f"bytes */{artifact.size}"})
    status = 200
    if byte_range is not None:
        status = 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    headers["content-length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    content = blobs.read_chunks(artifact.sha256, start=start, end=end)
    return StreamingResponse(content, status, headers)


def _parse_requested_range(
    request: Request, headers: Mapping[str, str], size: int
) -> tuple[int, int] | None:
    """Return the start and the exclusive end of the requested bytes; None for the whole file."""
    condition = request.headers.get("if-range")
    if condition is not None and condition != headers["etag"]:
        return None
    return parse_byte_range(request.headers.get("range"), size)
