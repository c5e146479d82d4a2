"""Defines the routes that return several files as one archive."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.tokens import (
    SIGNED_ARCHIVES_PREFIX,
    ArchivedFiles,
    create_archive_link,
    verify_archive_link,
)
from moyin.domain.artifact import StoredArtifact, sanitize_file_name
from moyin.errors import InvalidRequest
from moyin.http.headers import build_archive_headers
from moyin.http.validation import parse_object, validate
from moyin.jobs.protocol import wire
from moyin.store.archives import MAX_FILES, Archive
from moyin.store.artifacts import ArtifactFilter, ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore
from moyin.store.sql import now

_ARCHIVE_PATH = SIGNED_ARCHIVES_PREFIX + "{token}/{name}"
_ARCHIVE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The archive.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def new_archive_routes(
    artifacts: ArtifactStore, jobs: JobStore, blobs: BlobStore, signing_key: bytes
) -> APIRouter:
    """Return the routes that create links to archives, and that return archives by these links."""
    router = APIRouter(tags=["artifacts"])

    @router.post(
        "/artifacts/archive",
        name="archive",
        summary="Create a link to an archive of files",
        openapi_extra=describe_body(wire.ArchiveRequest.model_json_schema()),
    )
    async def create_archive(request: Request) -> wire.ArchiveBody:
        """Return a link to a ZIP archive of several files, which needs no key until it expires.

        The archive is created during the download. If `job` is given, it contains the files that
        the job has produced by then.
        """
        owner = context(request.scope).owner
        archive_request = validate(wire.ArchiveRequest, parse_object(await request.body()))
        selection = ArchivedFiles(
            artifact_ids=list(dict.fromkeys(archive_request.artifacts)), job_id=archive_request.job
        )
        files = await _find_archived_files(artifacts, jobs, owner, selection)
        if not files:
            raise InvalidRequest(
                "job: the job has no files yet; wait until it has produced one", field="job"
            )
        name = _name_archive(archive_request.name or archive_request.job)
        expires_at = now() + timedelta(seconds=archive_request.expires_in)
        return wire.ArchiveBody(
            url=create_archive_link(
                signing_key, owner, selection, name, ttl_s=archive_request.expires_in
            ),
            expires_at=expires_at.replace(microsecond=0),
            files=len(files),
            size=Archive(files).size,
        )

    @router.head(_ARCHIVE_PATH, include_in_schema=False)
    @router.get(_ARCHIVE_PATH, response_class=StreamingResponse, responses=_ARCHIVE_RESPONSES)
    async def download_archive(request: Request, token: str, name: str) -> Response:
        """Download the files of a signed link as one ZIP archive until the link expires."""
        owner, selection = verify_archive_link(signing_key, token)
        archive = Archive(await _find_archived_files(artifacts, jobs, owner, selection))
        headers = dict(build_archive_headers(_name_archive(name), archive.size))
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(archive.read_chunks(blobs), headers=headers)

    return router


async def _find_archived_files(
    artifacts: ArtifactStore, jobs: JobStore, owner: str, selection: ArchivedFiles
) -> list[StoredArtifact]:
    """Return the files of an archive; those of a job in the order in which they were produced.

    Raises:
        ArtifactNotFound, JobNotFound: a file or the job does not exist, or was deleted meanwhile.
    """
    if selection.job_id is None:
        return await artifacts.list_by_ids(owner, selection.artifact_ids)
    await jobs.get(owner, selection.job_id)
    # If the job has more files than an archive may have, one more is listed, so that `Archive`
    # rejects the request.
    job_files, _ = await artifacts.list_page(
        owner, ArtifactFilter(job_id=selection.job_id), limit=MAX_FILES + 1
    )
    return job_files[::-1]


def _name_archive(name: str | None) -> str:
    file_name = sanitize_file_name(name or "moyin", "application/zip")
    return file_name if file_name.lower().endswith(".zip") else f"{file_name}.zip"
