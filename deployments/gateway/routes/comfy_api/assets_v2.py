"""Serves ``/api/v2/assets``: files of the caller that graphs can reference (Comfy API v2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import artifact_response, receive_upload, store_upload
from deployments.gateway.routes.artifacts import artifact_id_for
from deployments.gateway.routes.comfy_api.jobs_v2 import ERRORS, presenter_for
from deployments.gateway.routes.jobs import idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import digest_of
from moyin.store.assets import AssetStore
from moyin.store.blobs import BlobStore

__all__ = ["asset_v2_routes"]

_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "content_type": {"type": "string"},
                        "file_path": {"type": "string"},
                        "expected_hash": {"type": "string", "pattern": wire.HASH},
                    },
                }
            }
        },
    }
}
_STORED: dict[int | str, dict[str, Any]] = {
    200: {"model": wire.AssetBody, "description": "This content was already stored."}
}


def asset_v2_routes(assets: AssetStore, blobs: BlobStore, retention: timedelta) -> APIRouter:
    """Return the routes of assets; every asset is an artifact of the caller."""
    router = APIRouter(prefix="/api/v2/assets", tags=["Comfy API v2"], responses=ERRORS)

    @router.post("", status_code=201, openapi_extra=_UPLOAD, responses=_STORED)
    async def create(
        request: Request,
        response: Response,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.AssetBody:
        """Store the part `file` of a form. An Idempotency-Key works once."""
        owner = context(request.scope).owner
        artifact_id = artifact_id_for(owner, idempotency_key(key))
        async with receive_upload(request, "file") as upload:
            artifact = await store_upload(
                blobs,
                upload,
                artifact_id,
                name=upload.fields.get("file_path") or upload.name,
                declared=upload.fields.get("content_type") or upload.declared,
            )
            stored, new = await assets.add(
                owner, artifact, expected=upload.fields.get("expected_hash")
            )
        response.status_code = 201 if new else 200
        return presenter_for(request, retention).asset(stored, new=new)

    @router.post("/from-hash", status_code=201)
    async def from_hash(request: Request, body: wire.FromHash) -> wire.AssetBody:
        """Create an asset with content that you have already stored."""
        stored = await assets.copy(
            context(request.scope).owner, digest_of(body.hash), body.file_path
        )
        return presenter_for(request, retention).asset(stored, new=False)

    @router.head("/by-hash/{digest}", include_in_schema=False)
    async def by_hash(request: Request, digest: str) -> Response:
        await assets.find(context(request.scope).owner, digest_of(digest))
        return Response()

    @router.get("/{asset_id}")
    async def show(request: Request, asset_id: str) -> wire.AssetBody:
        """Return the description of an asset."""
        stored = await assets.get(context(request.scope).owner, asset_id)
        return presenter_for(request, retention).asset(stored)

    @router.get("/{asset_id}/content", response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def content(request: Request, asset_id: str) -> Response:
        """Download the file. `Range` and `If-None-Match` are supported."""
        stored = await assets.get(context(request.scope).owner, asset_id)
        return await artifact_response(request, stored.artifact, blobs)

    @router.delete("/{asset_id}", status_code=204)
    async def delete(request: Request, asset_id: str) -> None:
        """Delete an asset. Jobs that were already accepted with it still get its content."""
        await assets.delete(context(request.scope).owner, asset_id)

    return router
