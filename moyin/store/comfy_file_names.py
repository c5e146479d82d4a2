"""Stores the names under which ComfyUI's clients uploaded files, and the artifact of each name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.artifact import Artifact
from moyin.domain.prompt import ComfyFileName
from moyin.errors import ServiceUnavailable
from moyin.store.artifacts import (
    MAX_UPLOAD_BYTES,
    enforce_upload_quota,
    insert_artifacts,
    parse_artifact,
)
from moyin.store.schema import artifacts, uploads
from moyin.store.sql import Database, now

# A number of names that SQLite and PostgreSQL accept in one statement.
_CHUNK = 100
_ATTEMPTS = 10


class UploadStore:
    """Maps the file names of an owner to artifacts.

    Args:
        max_upload_bytes: the maximum total size of a tenant's uploads in bytes.
    """

    def __init__(self, database: Database, *, max_upload_bytes: int = MAX_UPLOAD_BYTES) -> None:
        self._database = database
        self._max_upload_bytes = max_upload_bytes

    async def put(
        self, owner: str, name: ComfyFileName, artifact: Artifact, *, may_replace: bool
    ) -> Artifact:
        """Assign a name to an artifact; a name in use is reassigned only if ``may_replace`` is True.

        Returns:
            The artifact that has the name now.

        Raises:
            FileStorageFull: the tenant has no room for the upload.
            ServiceUnavailable: other requests keep assigning and deleting the name.
        """
        values = {
            "owner": owner,
            "type": name.type,
            "subfolder": name.subfolder,
            "filename": name.filename,
            "artifact_id": artifact.id,
            "created_at": now(),
        }

        is_visible = sa.exists().where(
            artifacts.c.id == uploads.c.artifact_id, artifacts.c.deleted_at.is_(None)
        )

        def put(connection: sa.Connection) -> None:
            enforce_upload_quota(connection, owner, artifact.size, max_bytes=self._max_upload_bytes)
            # The name of a deleted artifact is free.
            is_replaceable = sa.true() if may_replace else sa.not_(is_visible)
            connection.execute(uploads.delete().where(_has_name(owner, name), is_replaceable))
            connection.execute(uploads.insert().values(values))
            insert_artifacts(connection, [artifact], owner=owner, job_id=None)

        for _ in range(_ATTEMPTS):
            try:
                await self._database.write(put)
            except IntegrityError:
                artifacts_by_name = await self.find(owner, [name])
                if name in artifacts_by_name:
                    return artifacts_by_name[name]
                # The artifact with the name was deleted in between.
            else:
                return artifact
        raise ServiceUnavailable(
            f"other requests keep changing the file {name.filename!r}; try again"
        )

    async def find(
        self, owner: str, names: Collection[ComfyFileName]
    ) -> dict[ComfyFileName, Artifact]:
        """Return the artifacts with these names, by name; names without an artifact are left out."""
        ordered_names = list(names)
        artifacts_by_name: dict[ComfyFileName, Artifact] = {}
        for start in range(0, len(ordered_names), _CHUNK):
            chunk = ordered_names[start : start + _CHUNK]
            query = (
                sa.select(uploads.c.type, uploads.c.subfolder, uploads.c.filename, artifacts)
                .join(artifacts, artifacts.c.id == uploads.c.artifact_id)
                .where(
                    artifacts.c.deleted_at.is_(None),
                    sa.or_(*(_has_name(owner, name) for name in chunk)),
                )
            )
            rows = await self._database.fetch_all(query)
            artifacts_by_name.update((_parse_name(row), parse_artifact(row)) for row in rows)
        return artifacts_by_name

    async def list_newest(self, owner: str, kind: str, limit: int) -> list[ComfyFileName]:
        """Return the owner's newest file names, newest first.

        Args:
            kind: the folder type in ComfyUI, such as ``input``.
        """
        query = (
            sa.select(uploads.c.type, uploads.c.subfolder, uploads.c.filename)
            .where(uploads.c.owner == owner, uploads.c.type == kind)
            .order_by(uploads.c.created_at.desc(), uploads.c.subfolder, uploads.c.filename)
            .limit(limit)
        )
        return [_parse_name(row) for row in await self._database.fetch_all(query)]


def _has_name(owner: str, name: ComfyFileName) -> sa.ColumnElement[bool]:
    return sa.and_(
        uploads.c.owner == owner,
        uploads.c.type == name.type,
        uploads.c.subfolder == name.subfolder,
        uploads.c.filename == name.filename,
    )


def _parse_name(row: Mapping[Any, Any]) -> ComfyFileName:
    return ComfyFileName(filename=row["filename"], subfolder=row["subfolder"], type=row["type"])
