"""Defines the routes below ``/artifacts``, which store and return files."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments.files import build_artifact_response, receive_upload, store_upload
from deployments.gateway.openapi import describe_body, describe_file_form
from deployments.gateway.routes.jobs import validate_idempotency_key
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.tokens import (
    SIGNED_FILES_PREFIX,
    create_file_link,
    verify_file_link,
)
from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, IdempotencyMismatch, InvalidRequest, PictureTooLarge
from moyin.http.validation import parse_object, validate
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.filters import ArtifactsQuery, describe_query, parse_artifacts_query
from moyin.jobs.protocol.response import render_artifact, render_stored_artifact
from moyin.render.imaging import PictureConverter
from moyin.render.templates.catalog import TemplateCatalog
from moyin.store.artifacts import ArtifactStore, generate_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.sql import now

_LINK_PATH = SIGNED_FILES_PREFIX + "{token}/{name}"
_ARTIFACTS_QUERY = describe_query(ArtifactsQuery)
_Width = Annotated[
    int | None,
    Query(ge=64, le=1024, description="Return a WebP of the picture that is at most this wide."),
]
_UPLOAD = describe_file_form("file", {})
_UPLOAD["requestBody"]["content"] |= describe_body(
    {"type": "string", "format": "binary"}, "application/octet-stream"
)["requestBody"]["content"]


def new_artifact_routes(
    artifacts: ArtifactStore, blobs: BlobStore, pictures: PictureConverter, signing_key: bytes,
    templates: TemplateCatalog,
) -> APIRouter:  # fmt: skip
    """Return the routes that store, list, return and delete the caller's files."""
    router = APIRouter(tags=["artifacts"])

    @router.get(
        "/artifacts", name="page", summary="List files by filters", openapi_extra=_ARTIFACTS_QUERY
    )
    async def list_artifacts(request: Request) -> wire.ArtifactPage:
        """List your files, newest first.

        Pages filtered by media type, template, person or metadata may have fewer files than
        `limit`, or none, although `next_cursor` is not null.
        """
        query = parse_artifacts_query(request.query_params.multi_items())
        aliases = {} if query.template is None else (await templates.get_snapshot()).aliases
        page_items, next_cursor = await artifacts.list_page(
            context(request.scope).owner,
            query.to_domain(aliases),
            limit=query.limit,
            cursor=query.cursor,
        )
        bodies = [render_stored_artifact(stored_artifact) for stored_artifact in page_items]
        return wire.ArtifactPage(artifacts=bodies, next_cursor=next_cursor)

    @router.post("/artifacts", status_code=201, openapi_extra=_UPLOAD)
    async def upload(
        request: Request,
        response: Response,
        name: Annotated[str | None, Query(max_length=1024)] = None,
        idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> wire.ArtifactBody:
        """Store a file: the request body, or the part `file` of a multipart form."""
        owner = context(request.scope).owner
        artifact_id = derive_artifact_id(owner, validate_idempotency_key(idempotency_key))
        async with receive_upload(request, "file") as upload:
            artifact = await store_upload(
                blobs,
                upload,
                artifact_id,
                owner=owner,
                require_room=artifacts.require_room,
                name=name or upload.name,
                declared_type=upload.declared,
            )
        earlier_artifact = (
            await _find_stored_artifact(artifacts, owner, artifact)
            if idempotency_key is not None
            else None
        )
        if earlier_artifact is not None:
            artifact = earlier_artifact
            response.headers["idempotent-replayed"] = "true"
        else:
            await artifacts.add_or_restore(artifact, owner=owner)
            if idempotency_key is not None:
                # If requests with the same key are concurrent, the artifact that was stored first
                # is returned.
                artifact = await _find_stored_artifact(artifacts, owner, artifact) or artifact
        body = render_artifact(artifact)
        response.headers["location"] = body.url
        return body

    @router.head("/artifacts/{artifact_id}", include_in_schema=False)
    @router.get(
        "/artifacts/{artifact_id}", response_class=StreamingResponse, responses=FILE_RESPONSES
    )
    async def download(request: Request, artifact_id: str, w: _Width = None) -> Response:
        """Download a file, or the thumbnail of a picture or video.

        `Range` and `If-None-Match` are supported. Instead of a key, web pages can send `?token=`
        with an event token of the job that produced the file.
        """
        reader = context(request.scope).reader
        stored_artifact = await artifacts.get_with_origin(reader.owner, artifact_id)
        if not reader.may_read_job(stored_artifact.job_id):
            raise ArtifactNotFound(
                f"artifact {artifact_id!r} does not exist, or you may not see it; GET /artifacts lists "
                "yours"
            )
        response = await _build_file_response(
            request, reader.owner, stored_artifact.artifact, w, blobs, pictures
        )
        if reader.job is not None:
            _protect_secret_url(response)
        return response

    @router.delete("/artifacts/{artifact_id}", status_code=204, summary="Delete an upload")
    async def delete(request: Request, artifact_id: str) -> Response:
        """Delete an upload. A file that a job produced is deleted only together with the job."""
        await artifacts.delete(context(request.scope).owner, artifact_id)
        return Response(status_code=204)

    @router.put(
        "/artifacts/{artifact_id}/favourite",
        status_code=204,
        name="favourite",
        summary="Mark a file as a favourite",
    )
    async def add_favourite(request: Request, artifact_id: str) -> Response:
        """Mark a file as a favourite of your tenant. Lists of files can be filtered by the mark."""
        await artifacts.set_favourite(context(request.scope).owner, artifact_id, True)
        return Response(status_code=204)

    @router.delete(
        "/artifacts/{artifact_id}/favourite",
        status_code=204,
        name="unfavourite",
        summary="Remove the mark of a favourite",
    )
    async def remove_favourite(request: Request, artifact_id: str) -> Response:
        """Remove the mark of a favourite. The file stays."""
        await artifacts.set_favourite(context(request.scope).owner, artifact_id, False)
        return Response(status_code=204)

    @router.post(
        "/artifacts/{artifact_id}/link",
        summary="Create a link that works without a key",
        openapi_extra=describe_body(wire.LinkRequest.model_json_schema(), is_required=False),
    )
    async def create_link(request: Request, artifact_id: str) -> wire.LinkBody:
        """Return a link that serves this file without a key until it expires.

        A page can use the link in `<img>`, for example.
        """
        owner = context(request.scope).owner
        link_request = validate(wire.LinkRequest, parse_object(await request.body() or b"{}"))
        artifact = await artifacts.get(owner, artifact_id)
        expires_at = now() + timedelta(seconds=link_request.expires_in)
        url = create_file_link(
            signing_key, owner, artifact.id, artifact.name, ttl_s=link_request.expires_in
        )
        return wire.LinkBody(url=url, expires_at=expires_at.replace(microsecond=0))

    return router


def new_signed_link_routes(
    artifacts: ArtifactStore, blobs: BlobStore, pictures: PictureConverter, signing_key: bytes
) -> APIRouter:
    """Return the routes that return files by signed links, without a key."""
    router = APIRouter(tags=["artifacts"])

    @router.head(_LINK_PATH, include_in_schema=False)
    @router.get(_LINK_PATH, response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def download(request: Request, token: str, name: str, w: _Width = None) -> Response:
        """Download a file by a signed link, or the thumbnail of a picture or video.

        The link needs no key, and is valid until it expires.
        """
        owner, artifact_id = verify_file_link(signing_key, token)
        artifact = await artifacts.get(owner, artifact_id)
        response = await _build_file_response(request, owner, artifact, w, blobs, pictures)
        _protect_secret_url(response)
        return response

    return router


def derive_artifact_id(owner: str, idempotency_key: str | None) -> str:
    """Return a new artifact id, derived from the Idempotency-Key if there is one, else random."""
    if idempotency_key is None:
        return generate_artifact_id()
    digest = hashlib.sha256("\0".join((owner, idempotency_key)).encode()).hexdigest()
    return f"art_{digest[:32]}"


async def _build_file_response(
    request: Request,
    owner: str,
    artifact: Artifact,
    width: int | None,
    blobs: BlobStore,
    pictures: PictureConverter,
) -> Response:
    """Return the file, or a thumbnail of it if ``width`` is given."""
    if width is not None:
        return await _build_thumbnail_response(request, owner, artifact, width, pictures)
    return await build_artifact_response(request, artifact, blobs)


def _protect_secret_url(response: Response) -> None:
    """Set the headers of a response whose URL grants access without a key.

    Pages of any site may use such a URL, but it must not leak to other sites or shared caches.
    """
    response.headers["referrer-policy"] = "no-referrer"
    response.headers["cache-control"] = "private, max-age=3600"
    response.headers["cross-origin-resource-policy"] = "cross-origin"


async def _build_thumbnail_response(
    request: Request, owner: str, artifact: Artifact, width: int, pictures: PictureConverter
) -> Response:
    """Return a thumbnail, which clients may cache for a year.

    Raises the errors of `PictureConverter.make_thumbnail`.
    """
    headers = {
        "etag": f'"{artifact.sha256}-w{width}"',
        "cache-control": "private, max-age=31536000, immutable",
        "cross-origin-resource-policy": "same-site",
        "x-content-type-options": "nosniff",
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    try:
        picture = await pictures.make_thumbnail(owner, artifact, width)
    except (InvalidRequest, PictureTooLarge) as error:
        error.field = "w"
        raise
    headers["content-length"] = str(picture.size)
    return StreamingResponse(
        picture.iterate_chunks(), media_type=picture.media_type, headers=headers
    )


async def _find_stored_artifact(
    artifacts: ArtifactStore, owner: str, artifact: Artifact
) -> Artifact | None:
    """Return the artifact that an earlier request stored with the same Idempotency-Key.

    Return None if there is none or if it was deleted, so that the file is stored again.

    Raises:
        IdempotencyMismatch: the earlier request stored another file. This applies even if that file
            was deleted, because open jobs may still read it.
    """
    try:
        stored_artifact = await artifacts.get_even_if_deleted(owner, artifact.id)
        if stored_artifact.sha256 == artifact.sha256:
            return await artifacts.get(owner, artifact.id)
    except ArtifactNotFound:
        return None
    raise IdempotencyMismatch(
        "this Idempotency-Key was used for another file: use a new key", field="Idempotency-Key"
    )
