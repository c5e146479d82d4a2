"""Stores the names of files that ComfyUI's clients uploaded; the files are artifacts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.artifact import Artifact
from moyin.domain.prompt import ComfyFileName
from moyin.store.artifacts import artifact_of_row, insert_artifacts
from moyin.store.schema import artifacts, uploads
from moyin.store.sql import Database, now

__all__ = ["UploadStore"]

# The number of names that every database accepts in one statement.
_CHUNK = 100


class UploadStore:
    """Reads and writes file names of one owner at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, owner: str, name: ComfyFileName, artifact: Artifact, *, replace: bool
    ) -> Artifact:
        """Name an artifact; return the artifact that has the name now.

        Args:
            replace: whether to take the name from another artifact; if not, that one is returned.
        """
        values = {
            "owner": owner,
            "type": name.type,
            "subfolder": name.subfolder,
            "filename": name.filename,
            "artifact_id": artifact.id,
            "created_at": now(),
        }

        def put(connection: sa.Connection) -> None:
            if replace:
                connection.execute(uploads.delete().where(_has_name(owner, name)))
            connection.execute(uploads.insert().values(values))
            insert_artifacts(connection, [artifact], owner=owner, job_id=None)

        try:
            await self._database.write(put)
        except IntegrityError:
            existing = await self.find(owner, [name])
            return existing.get(name, artifact)
        return artifact

    async def find(
        self, owner: str, names: Collection[ComfyFileName]
    ) -> dict[ComfyFileName, Artifact]:
        """Return the artifacts of those names that exist."""
        remaining = list(names)
        artifacts_by_name: dict[ComfyFileName, Artifact] = {}
        for start in range(0, len(remaining), _CHUNK):
            part = remaining[start : start + _CHUNK]
            query = (
                sa.select(uploads.c.type, uploads.c.subfolder, uploads.c.filename, artifacts)
                .join(artifacts, artifacts.c.id == uploads.c.artifact_id)
                .where(sa.or_(*(_has_name(owner, name) for name in part)))
            )
            rows = await self._database.read(partial(_rows, query))
            artifacts_by_name.update((_name(row), artifact_of_row(row)) for row in rows)
        return artifacts_by_name

    async def newest(self, owner: str, kind: str, limit: int) -> list[ComfyFileName]:
        """Return names of one type, newest first."""
        query = (
            sa.select(uploads.c.type, uploads.c.subfolder, uploads.c.filename)
            .where(uploads.c.owner == owner, uploads.c.type == kind)
            .order_by(uploads.c.created_at.desc(), uploads.c.subfolder, uploads.c.filename)
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_name(row) for row in rows]


def _rows(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Mapping[Any, Any]]:
    return connection.execute(query).mappings().all()


def _has_name(owner: str, name: ComfyFileName) -> sa.ColumnElement[bool]:
    return sa.and_(
        uploads.c.owner == owner,
        uploads.c.type == name.type,
        uploads.c.subfolder == name.subfolder,
        uploads.c.filename == name.filename,
    )


def _name(row: Mapping[Any, Any]) -> ComfyFileName:
    return ComfyFileName(filename=row["filename"], subfolder=row["subfolder"], type=row["type"])
