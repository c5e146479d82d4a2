"""Serves ComfyUI's ``/view`` and ``/upload``, also under ``/api``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import Upload, artifact_response, receive_upload, store_upload
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.files import FarmFiles, file_name
from moyin.errors import ArtifactNotFound, InvalidRequest
from moyin.http.validation import parse_object
from moyin.render.imaging import ConvertedPicture, PictureConverter
from moyin.store.artifacts import generate_artifact_id
from moyin.store.blobs import BlobStore

__all__ = ["file_routes"]

_TRUE = ("true", "1")
_Part = Annotated[str, Query(max_length=255)]


def file_routes(files: FarmFiles, blobs: BlobStore, pictures: PictureConverter) -> APIRouter:
    """Return the routes of files by their names."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/view", response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def view(
        request: Request,
        filename: _Part | None = None,
        subfolder: _Part = "",
        type: _Part = "output",
        preview: _Part | None = None,
        channel: _Part = "",
    ) -> Response:
        """Return one of your files: an output, a preview or an upload."""
        if filename is None:
            raise ArtifactNotFound("the parameter filename must name a file")
        name = file_name(filename, subfolder, type)
        owner = context(request.scope).owner
        artifact = await files.find(owner, name)
        if preview is None and channel not in ("rgb", "a"):
            response = await artifact_response(request, artifact, blobs)
            # An upload may be replaced by another one of the same name.
            response.headers["cache-control"] = "private, no-cache"
            return response
        if preview is not None:
            return _picture_response(await pictures.preview(owner, artifact, preview, channel))
        return _picture_response(await pictures.channel(owner, artifact, channel))

    @router.post("/upload/image", openapi_extra=_form())
    async def upload_image(request: Request) -> dict[str, str]:
        """Store a file that graphs can load by its name."""
        async with receive_upload(request, "image") as upload:
            return await store(context(request.scope).owner, upload)

    @router.post("/upload/mask", openapi_extra=_form("original_ref"))
    async def upload_mask(request: Request) -> dict[str, str]:
        """Store a copy of the file `original_ref` with the transparency of the uploaded picture."""
        owner = context(request.scope).owner
        async with receive_upload(request, "image") as upload:
            original = await files.find(owner, _original_name(upload.fields))
            await pictures.apply_mask(owner, original, upload.path)
            return await store(owner, replace(upload, declared="image/png"))

    async def store(owner: str, upload: Upload) -> dict[str, str]:
        fields = upload.fields
        name = file_name(
            Path(upload.name or "").name, fields.get("subfolder", ""), fields.get("type", "input")
        )
        artifact = await store_upload(
            blobs, upload, generate_artifact_id(), name=name.filename, declared=upload.declared
        )
        overwrite = fields.get("overwrite") in _TRUE
        stored = await files.add_upload(owner, name, artifact, overwrite=overwrite)
        return {"name": stored.filename, "subfolder": stored.subfolder, "type": stored.type}

    return router


def _original_name(fields: Mapping[str, str]) -> Any:
    reference = parse_object(fields.get("original_ref", "").encode())
    parts = {
        "filename": reference.get("filename", ""),
        "subfolder": reference.get("subfolder", ""),
        "kind": reference.get("type", "output"),
    }
    if not all(isinstance(part, str) for part in parts.values()):
        raise InvalidRequest("filename, subfolder and type must be strings", field="original_ref")
    return file_name(**parts)


def _picture_response(picture: ConvertedPicture) -> Response:
    headers = {
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-length": str(picture.size),
    }
    return StreamingResponse(picture.chunks(), media_type=picture.media_type, headers=headers)


def _form(*more: str) -> dict[str, Any]:
    text = {"type": "string"}
    members: dict[str, Any] = {name: text for name in ("overwrite", "type", "subfolder", *more)}
    members["image"] = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": ["image", *more], "properties": members}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }
