"""``/artifacts``: uploads in, stored files out, both as streams."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import kept, received, served
from deployments.gateway.routes.jobs import idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, IdempotencyMismatch
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import artifact_body
from moyin.store.artifacts import ArtifactStore, new_artifact_id
from moyin.store.blobs import BlobStore

__all__ = ["artifact_id_of", "artifact_routes"]

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
        artifact_id = artifact_id_of(owner, idempotency_key(key))
        async with received(request, "file") as upload:
            artifact = await kept(
                blobs, upload, artifact_id, name=name or upload.name, declared=upload.declared
            )
        known = await _known(artifacts, owner, artifact) if key is not None else None
        if known is not None:
            artifact = known
            response.headers["idempotent-replayed"] = "true"
        else:
            await artifacts.add(artifact, owner=owner)
            if key is not None:
                # Of many at once the first has the key.
                artifact = await _known(artifacts, owner, artifact) or artifact
        body = artifact_body(artifact)
        response.headers["location"] = body.url
        return body

    async def serve(request: Request, artifact_id: str) -> Response:
        artifact = await artifacts.get(context(request.scope).owner, artifact_id)
        return await served(request, artifact, blobs)

    @router.get(
        "/artifacts/{artifact_id}", response_class=StreamingResponse, responses=FILE_RESPONSES
    )
    async def download(request: Request, artifact_id: str) -> Response:
        """The file. Understands `Range` and `If-None-Match`."""
        return await serve(request, artifact_id)

    @router.head("/artifacts/{artifact_id}", include_in_schema=False)
    async def describe(request: Request, artifact_id: str) -> Response:
        return await serve(request, artifact_id)

    return router


def artifact_id_of(owner: str, key: str | None) -> str:
    """Random, or derived from the Idempotency-Key, which makes a repeat find the first."""
    if key is None:
        return new_artifact_id()
    digest = hashlib.sha256("\0".join((owner, key)).encode()).hexdigest()
    return f"art_{digest[:32]}"


async def _known(artifacts: ArtifactStore, owner: str, artifact: Artifact) -> Artifact | None:
    """What was stored under the same key.

    Raises:
        IdempotencyMismatch: another file.
    """
    if not await artifacts.taken(artifact.id):
        return None
    known: Artifact | None
    try:
        known = await artifacts.get(owner, artifact.id)
    except ArtifactNotFound:
        known = None  # deleted since
    if known is None or known.sha256 != artifact.sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another file; use a new key",
            field="Idempotency-Key",
        )
    return known
