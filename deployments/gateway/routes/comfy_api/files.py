"""Defines ComfyUI's routes ``/view`` and ``/upload``, which are also served under ``/api``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.files import Upload, build_artifact_response, receive_upload, store_upload
from deployments.gateway.openapi import describe_file_form
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.files import ComfyFiles, parse_file_name
from moyin.domain.prompt import ComfyFileName
from moyin.errors import ArtifactNotFound, InvalidRequest
from moyin.http.validation import parse_object
from moyin.render.imaging import ConvertedPicture, PictureConverter
from moyin.store.artifacts import generate_artifact_id
from moyin.store.blobs import BlobStore

_TRUE_VALUES = ("true", "1")
_Part = Annotated[str, Query(max_length=255)]
_TEXT = {"type": "string"}
_FORM_FIELDS = {"overwrite": _TEXT, "type": _TEXT, "subfolder": _TEXT}


def new_file_routes(files: ComfyFiles, blobs: BlobStore, pictures: PictureConverter) -> APIRouter:
    """Return the routes that store and return files by ComfyUI's names."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/view", response_class=StreamingResponse, responses=FILE_RESPONSES, name="view")
    async def view_file(
        request: Request,
        filename: _Part | None = None,
        subfolder: _Part = "",
        type: _Part = "output",
        preview: _Part | None = None,
        channel: _Part = "",
        client_id: _Part | None = None,
    ) -> Response:
        """Return one of your uploads, outputs or previews.

        An upload of this name takes precedence over outputs. Without `subfolder`, the newest output
        of this name is returned: one of the ComfyUI client `client_id` (by default, of your key or
        account), or else one of your tenant.
        """
        if filename is None:
            raise ArtifactNotFound("the query parameter filename is missing: it must name a file")
        name = parse_file_name(filename, subfolder, type)
        caller = context(request.scope).caller
        artifact = await files.find_file(caller, name, client_id)
        if preview is None and channel not in ("rgb", "a"):
            response = await build_artifact_response(request, artifact, blobs)
            # Another upload with the same name may replace the file.
            response.headers["cache-control"] = "private, no-cache"
            return response
        if preview is not None:
            return _build_picture_response(
                await pictures.make_preview(caller.owner, artifact, preview, channel)
            )
        return _build_picture_response(
            await pictures.make_channel_picture(caller.owner, artifact, channel)
        )

    @router.post("/upload/image", openapi_extra=describe_file_form("image", _FORM_FIELDS))
    async def upload_image(request: Request) -> dict[str, str]:
        """Store a file, which graphs can load by its name or by `artifact:<artifact_id>`."""
        async with receive_upload(request, "image") as upload:
            return await store_by_name(context(request.scope).owner, upload)

    @router.post(
        "/upload/mask",
        openapi_extra=describe_file_form(
            "image", {**_FORM_FIELDS, "original_ref": _TEXT}, "original_ref"
        ),
    )
    async def upload_mask(request: Request) -> dict[str, str]:
        """Store a copy of the file `original_ref` with the alpha channel of the upload."""
        caller = context(request.scope).caller
        async with receive_upload(request, "image") as upload:
            original_file = await files.find_file(caller, _parse_original_ref(upload.fields))
            await pictures.apply_mask(caller.owner, original_file, upload.path)
            return await store_by_name(caller.owner, replace(upload, declared="image/png"))

    async def store_by_name(owner: str, upload: Upload) -> dict[str, str]:
        fields = upload.fields
        name = parse_file_name(
            Path(upload.name or "").name, fields.get("subfolder", ""), fields.get("type", "input")
        )
        artifact = await store_upload(
            blobs,
            upload,
            generate_artifact_id(),
            owner=owner,
            require_room=files.artifacts.require_room,
            name=name.filename,
            declared_type=upload.declared,
        )
        overwrite = fields.get("overwrite") in _TRUE_VALUES
        final_name, stored_artifact = await files.add_upload(
            owner, name, artifact, overwrite=overwrite
        )
        return {
            "name": final_name.filename,
            "subfolder": final_name.subfolder,
            "type": final_name.type,
            "artifact_id": stored_artifact.id,
        }

    return router


def _parse_original_ref(fields: Mapping[str, str]) -> ComfyFileName:
    reference = parse_object(fields.get("original_ref", "").encode())
    name_parts = {
        "filename": reference.get("filename", ""),
        "subfolder": reference.get("subfolder", ""),
        "kind": reference.get("type", "output"),
    }
    if not all(isinstance(part, str) for part in name_parts.values()):
        raise InvalidRequest(
            "filename, subfolder and type in original_ref must be strings", field="original_ref"
        )
    return parse_file_name(**name_parts)


def _build_picture_response(picture: ConvertedPicture) -> Response:
    headers = {
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-length": str(picture.size),
    }
    return StreamingResponse(
        picture.iterate_chunks(), media_type=picture.media_type, headers=headers
    )
