"""``/api/v2/assets``: the caller's files, which graphs may refer to, through the Comfy API v2."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import kept, received, served
from deployments.gateway.routes.artifacts import artifact_id_of
from deployments.gateway.routes.comfyui_v2 import ERRORS, teller_of
from deployments.gateway.routes.jobs import idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol_v2 import wire
from moyin.comfy_api.protocol_v2.request_to_domain import digest_of
from moyin.store.assets import Assets
from moyin.store.blobs import BlobStore

__all__ = ["asset_routes"]

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
    200: {"model": wire.AssetBody, "description": "You had these bytes here already."}
}


def asset_routes(assets: Assets, blobs: BlobStore, retention: timedelta) -> APIRouter:
    """The routes of assets; every one is an artifact of the caller's."""
    router = APIRouter(prefix="/api/v2/assets", tags=["Comfy API v2"], responses=ERRORS)

    @router.post("", status_code=201, openapi_extra=_UPLOAD, responses=_STORED)
    async def upload(
        request: Request,
        response: Response,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.AssetBody:
        """Store a file: the part `file` of a form. An Idempotency-Key works once."""
        owner = context(request.scope).owner
        artifact_id = artifact_id_of(owner, idempotency_key(key))
        async with received(request, "file") as sent:
            artifact = await kept(
                blobs,
                sent,
                artifact_id,
                name=sent.fields.get("file_path") or sent.name,
                declared=sent.fields.get("content_type") or sent.declared,
            )
            stored, new = await assets.add(
                owner, artifact, expected=sent.fields.get("expected_hash")
            )
        response.status_code = 201 if new else 200
        return teller_of(request, retention).asset(stored, new=new)

    @router.post("/from-hash", status_code=201)
    async def from_hash(request: Request, asked: wire.FromHash) -> wire.AssetBody:
        """Another asset of bytes that you have here already."""
        stored = await assets.copy(
            context(request.scope).owner, digest_of(asked.hash), asked.file_path
        )
        return teller_of(request, retention).asset(stored, new=False)

    @router.head("/by-hash/{digest}", include_in_schema=False)
    async def by_hash(request: Request, digest: str) -> Response:
        await assets.find(context(request.scope).owner, digest_of(digest))
        return Response()

    @router.get("/{asset_id}")
    async def show(request: Request, asset_id: str) -> wire.AssetBody:
        """What is known of the file."""
        stored = await assets.get(context(request.scope).owner, asset_id)
        return teller_of(request, retention).asset(stored)

    @router.get("/{asset_id}/content", response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def content(request: Request, asset_id: str) -> Response:
        """The file. Understands `Range` and `If-None-Match`."""
        stored = await assets.get(context(request.scope).owner, asset_id)
        return await served(request, stored.artifact, blobs)

    @router.delete("/{asset_id}", status_code=204)
    async def delete(request: Request, asset_id: str) -> None:
        """Forget an upload. Jobs that were accepted with it still get it."""
        await assets.delete(context(request.scope).owner, asset_id)

    return router
