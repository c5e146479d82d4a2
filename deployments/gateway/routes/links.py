"""``/artifacts/signed``: single files for whoever holds a link to them, without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.files import served
from deployments.openapi import FILE_RESPONSES
from moyin.access.gatekeeper.links import SIGNED_FILES_PREFIX, verify_file_link
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore

__all__ = ["link_routes"]

_PATH = SIGNED_FILES_PREFIX + "{token}/{name}"


def link_routes(artifacts: ArtifactStore, blobs: BlobStore, signing_key: bytes) -> APIRouter:
    """The routes of links that `moyin.access.gatekeeper.links` signs."""
    router = APIRouter(tags=["artifacts"])

    async def serve(request: Request, token: str) -> Response:
        owner, artifact_id = verify_file_link(signing_key, token)
        response = await served(request, await artifacts.get(owner, artifact_id), blobs)
        # The address is the key: it must not go on to other sites, nor stay in shared caches.
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["cache-control"] = "private, max-age=3600"
        return response

    @router.get(_PATH, response_class=StreamingResponse, responses=FILE_RESPONSES)
    async def download(request: Request, token: str, name: str) -> Response:
        """The file that a link opens, until it expires. Needs no key."""
        return await serve(request, token)

    @router.head(_PATH, include_in_schema=False)
    async def describe(request: Request, token: str, name: str) -> Response:
        return await serve(request, token)

    return router
