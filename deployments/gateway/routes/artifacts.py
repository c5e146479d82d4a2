"""Serves ``/artifacts``: uploads, downloads, and downloads by signed link without a key."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import artifact_response, receive_upload, store_upload
from deployments.gateway.routes.jobs import idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.tokens import SIGNED_FILES_PREFIX, verify_file_link
from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, IdempotencyMismatch
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import render_artifact
from moyin.store.artifacts import ArtifactStore, generate_artifact_id
from moyin.store.blobs import BlobStore

__all__ = ["artifact_id_for", "artifact_routes", "link_routes"]

_LINK_PATH = SIGNED_FILES_PREFIX + "{token}/{name}"
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
    """Return the routes that store and serve files of the caller."""
    router = APIRouter(tags=["artifacts"])

    @router.post("/artifacts", status_code=201, openapi_extra=_UPLOAD)
    async def upload(
        request: Request,
        response: Response,
        name: Annotated[str | None, Query(max_length=1024)] = None,
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.ArtifactBody:
        """Store a file: the request body, or the part `file` of a multipart form."""
        owner = context(request.scope).owner
        artifact_id = artifact_id_for(owner, idempotency_key(key))
        async with receive_upload(request, "file") as upload:
            artifact = await store_upload(
                blobs, upload, artifact_id, name=name or upload.name, declared=upload.declared
            )
        known = await _find_stored(artifacts, owner, artifact) if key is not None else None
        if known is not None:
            artifact = known
            response.headers["idempotent-replayed"] = "true"
        else:
            await artifacts.add(artifact, owner=owner)
            if key is not None:
                # Of concurrent requests with the same key, the first one counts.
                artifact = await _find_stored(artifacts, owner, artifact) or artifact
        body = render_artifact(artifact)
        response.headers["location"] = body.url
        return body

    async def serve(request: Request, artifact_id: str) -> Response:
        artifact = await artifacts.get(context(request.scope).owner, artifact_id)
        return await artifact_response(request, artifact, blobs)

    @router.get(
        "/artifacts/{artifact_id}", response_class=StreamingResponse, responses=FILE_RESPONSES
    )
    async def download(request: Request, artifact_id: str) -> Response:
        """Download a file. `Range` and `If-None-Match` are supported."""
        return await serve(request, artifact_id)

    @router.head("/artifacts/{artifact_id}", include_in_schema=False)
    async def describe(request: Request, artifact_id: str) -> Response:
        return await serve(request, artifact_id)

    return router


def link_routes(artifacts: ArtifactStore, blobs: BlobStore, signing_key: bytes) -> APIRouter:
    """Return the routes of the links that `moyin.access.gatekeeper.tokens` signs."""
    router = APIRouter(tags=["artifacts"])

    async def serve(request: Request, token: str) -> Response:
        owner, artifact_id = verify_file_link(signing_key, token)
        response = await artifact_response(request, await artifacts.get(owner, artifact_id), blobs)
        # The URL grants access, so it must not leak to other sites or shared caches.
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["cache-control"] = "private, max-age=3600"
        return response

    @router.get(_LINK_PATH, response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def download(request: Request, token: str, name: str) -> Response:
        """Download the file of a signed link until the link expires. No key is needed."""
        return await serve(request, token)

    @router.head(_LINK_PATH, include_in_schema=False)
    async def describe(request: Request, token: str, name: str) -> Response:
        return await serve(request, token)

    return router


def artifact_id_for(owner: str, key: str | None) -> str:
    """Return a random id, or one derived from the Idempotency-Key, so that repeats get the same."""
    if key is None:
        return generate_artifact_id()
    digest = hashlib.sha256("\0".join((owner, key)).encode()).hexdigest()
    return f"art_{digest[:32]}"


async def _find_stored(artifacts: ArtifactStore, owner: str, artifact: Artifact) -> Artifact | None:
    """Return the artifact that was stored with the same Idempotency-Key, if any.

    Raises:
        IdempotencyMismatch: the key was used for another file.
    """
    if not await artifacts.is_id_used(artifact.id):
        return None
    known: Artifact | None
    try:
        known = await artifacts.get(owner, artifact.id)
    except ArtifactNotFound:
        known = None  # it has been deleted
    if known is None or known.sha256 != artifact.sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another file: use a new key",
            field="Idempotency-Key",
        )
    return known
