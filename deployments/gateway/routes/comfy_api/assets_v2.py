"""Defines the routes below ``/api/v2/assets`` of the Comfy API v2, for files that graphs load."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from deployments.files import build_artifact_response, receive_upload, store_upload
from deployments.gateway.openapi import describe_file_form
from deployments.gateway.routes.artifacts import derive_artifact_id
from deployments.gateway.routes.comfy_api.jobs_v2 import ERROR_RESPONSES, new_presenter
from deployments.gateway.routes.jobs import validate_idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import parse_hash
from moyin.store.assets import AssetStore
from moyin.store.blobs import BlobStore

_UPLOAD = describe_file_form(
    "file",
    {
        "content_type": {"type": "string"},
        "file_path": {"type": "string"},
        "expected_hash": {"type": "string", "pattern": wire.HASH_PATTERN},
    },
)
_STORED: dict[int | str, dict[str, Any]] = {
    200: {"model": wire.AssetBody, "description": "This content was already stored."}
}


def new_asset_v2_routes(assets: AssetStore, blobs: BlobStore, retention: timedelta) -> APIRouter:
    """Return the routes of assets, which are the Comfy API's view of the caller's artifacts."""
    router = APIRouter(prefix="/api/v2/assets", tags=["Comfy API v2"], responses=ERROR_RESPONSES)

    @router.post("", status_code=201, openapi_extra=_UPLOAD, responses=_STORED, name="create")
    async def create_asset(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.AssetBody:
        """Store the part `file` of a form as an asset. Each Idempotency-Key may be used once."""
        owner = context(request.scope).owner
        artifact_id = derive_artifact_id(owner, validate_idempotency_key(idempotency_key))
        async with receive_upload(request, "file") as upload:
            artifact = await store_upload(
                blobs, upload, artifact_id, owner=owner, require_room=assets.require_room, name=upload.fields.get("file_path") or upload.name,
                declared_type=upload.fields.get("content_type") or upload.declared,
            )  # fmt: skip
            stored_asset, is_new = await assets.add(
                owner, artifact, expected_hash=upload.fields.get("expected_hash")
            )
        response.status_code = 201 if is_new else 200
        return new_presenter(request, retention).to_asset_body(stored_asset, is_new=is_new)

    @router.post("/from-hash", status_code=201, name="from_hash")
    async def create_from_hash(request: Request, body: wire.FromHash) -> wire.AssetBody:
        """Create an asset from content that you have already stored."""
        stored_asset = await assets.copy(
            context(request.scope).owner, parse_hash(body.hash), body.file_path
        )
        return new_presenter(request, retention).to_asset_body(stored_asset, is_new=False)

    @router.head("/by-hash/{digest}", include_in_schema=False)
    async def exists_by_hash(request: Request, digest: str) -> Response:
        await assets.find(context(request.scope).owner, parse_hash(digest))
        return Response()

    @router.get("/{asset_id}", name="show")
    async def get_asset(request: Request, asset_id: str) -> wire.AssetBody:
        """Return an asset without its content."""
        stored_asset = await assets.get(context(request.scope).owner, asset_id)
        return new_presenter(request, retention).to_asset_body(stored_asset)

    @router.get(
        "/{asset_id}/content",
        response_class=StreamingResponse,
        responses=FILE_RESPONSES,
        name="content",
    )
    async def download(request: Request, asset_id: str) -> Response:
        """Download an asset's content. `Range` and `If-None-Match` are supported."""
        stored_asset = await assets.get(context(request.scope).owner, asset_id)
        return await build_artifact_response(request, stored_asset.artifact, blobs)

    @router.delete("/{asset_id}", status_code=204, name="delete")
    async def delete_asset(request: Request, asset_id: str) -> None:
        """Delete an asset. Jobs that were accepted before still get its content."""
        await assets.delete(context(request.scope).owner, asset_id)

    return router
