"""Defines the routes below ``/artifacts``, which store and return files."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import build_artifact_response, receive_upload, store_upload
from deployments.gateway.openapi import describe_body, describe_file_form
from deployments.gateway.routes.jobs import validate_idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.tokens import SIGNED_FILES_PREFIX, verify_file_link
from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, IdempotencyMismatch
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import render_artifact
from moyin.store.artifacts import ArtifactStore, generate_artifact_id
from moyin.store.blobs import BlobStore

_LINK_PATH = SIGNED_FILES_PREFIX + "{token}/{name}"
_UPLOAD = describe_file_form("file", {})
_UPLOAD["requestBody"]["content"] |= describe_body(
    {"type": "string", "format": "binary"}, "application/octet-stream"
)["requestBody"]["content"]


def artifact_routes(artifacts: ArtifactStore, blobs: BlobStore) -> APIRouter:
    """Return the routes that store and return the caller's files."""
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
        artifact_id = derive_artifact_id(owner, validate_idempotency_key(key))
        async with receive_upload(request, "file") as upload:
            artifact = await store_upload(
                blobs, upload, artifact_id, name=name or upload.name, declared=upload.declared
            )
        stored = await _find_stored(artifacts, owner, artifact) if key is not None else None
        if stored is not None:
            artifact = stored
            response.headers["idempotent-replayed"] = "true"
        else:
            await artifacts.add(artifact, owner=owner)
            if key is not None:
                # If requests with the same key were concurrent, the first stored artifact counts.
                artifact = await _find_stored(artifacts, owner, artifact) or artifact
        body = render_artifact(artifact)
        response.headers["location"] = body.url
        return body

    @router.head("/artifacts/{artifact_id}", include_in_schema=False)
    @router.get(
        "/artifacts/{artifact_id}", response_class=StreamingResponse, responses=FILE_RESPONSES
    )
    async def download(request: Request, artifact_id: str) -> Response:
        """Download a file. `Range` and `If-None-Match` are supported."""
        artifact = await artifacts.get(context(request.scope).owner, artifact_id)
        return await build_artifact_response(request, artifact, blobs)

    return router


def signed_link_routes(artifacts: ArtifactStore, blobs: BlobStore, signing_key: bytes) -> APIRouter:
    """Return the routes that return files by signed links, without a key."""
    router = APIRouter(tags=["artifacts"])

    @router.head(_LINK_PATH, include_in_schema=False)
    @router.get(_LINK_PATH, response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def download(request: Request, token: str, name: str) -> Response:
        """Download a file by a signed link, without a key, until the link expires."""
        owner, artifact_id = verify_file_link(signing_key, token)
        artifact = await artifacts.get(owner, artifact_id)
        response = await build_artifact_response(request, artifact, blobs)
        # The URL grants access, so it must not leak to other sites or shared caches.
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["cache-control"] = "private, max-age=3600"
        return response

    return router


def derive_artifact_id(owner: str, key: str | None) -> str:
    """Return an id for a new artifact: the same for each Idempotency-Key, random without a key."""
    if key is None:
        return generate_artifact_id()
    digest = hashlib.sha256("\0".join((owner, key)).encode()).hexdigest()
    return f"art_{digest[:32]}"


async def _find_stored(artifacts: ArtifactStore, owner: str, artifact: Artifact) -> Artifact | None:
    """Return the artifact that an earlier request stored with the same Idempotency-Key, if any.

    Raises:
        IdempotencyMismatch: the earlier request stored another file.
    """
    if not await artifacts.is_id_used(artifact.id):
        return None
    stored: Artifact | None
    try:
        stored = await artifacts.get(owner, artifact.id)
    except ArtifactNotFound:
        stored = None  # The artifact has been deleted.
    if stored is None or stored.sha256 != artifact.sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used for another file: use a new key", field="Idempotency-Key"
        )
    return stored
