"""Stores the metadata and owners of artifacts in SQL; `moyin.store.blobs` stores their bytes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.errors import ArtifactInUse, ArtifactNotFound
from moyin.store.schema import artifacts
from moyin.store.sql import Database, ensure_utc, now

# Concurrent writers of an id write the same row, so the second write is ignored.
_INSERT = {
    "sqlite": sqlite.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
}


def generate_artifact_id() -> str:
    """Return a new random artifact id."""
    return f"art_{uuid.uuid4().hex}"


def derive_step_artifact_id(job_id: str, index: int, ordinal: int) -> str:
    """Return the id of output ``ordinal`` of the step at ``index``: the same for every attempt."""
    return f"art_{uuid.uuid5(uuid.UUID(job_id), f'{index}/{ordinal}').hex}"


class ArtifactStore:
    """Reads and writes the rows of artifacts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, artifact: Artifact, *, owner: str, job_id: str | None = None) -> None:
        """Store the metadata of an artifact unless its id exists already."""
        await self._database.write(
            lambda connection: insert_artifacts(connection, [artifact], owner=owner, job_id=job_id)
        )

    async def get(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner; raise `ArtifactNotFound` if there is none."""
        return (await self.get_with_origin(owner, artifact_id)).artifact

    async def get_with_origin(self, owner: str, artifact_id: str) -> StoredArtifact:
        """Return an artifact of the owner with its job and creation time, or raise `ArtifactNotFound`."""
        row = await self._fetch_row(owner, artifact_id)
        if row["deleted_at"] is not None:
            raise _not_found(artifact_id)
        return _parse_stored_artifact(row)

    async def get_even_if_deleted(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner, even a deleted one, or raise `ArtifactNotFound`."""
        return parse_artifact(await self._fetch_row(owner, artifact_id))

    async def is_id_used(self, artifact_id: str) -> bool:
        """Return whether any owner has, or had and deleted, an artifact with this id."""
        query = sa.select(artifacts.c.id).where(artifacts.c.id == artifact_id)
        return await self._database.fetch_first(query) is not None

    async def find_by_content(self, owner: str, blake3: str) -> StoredArtifact | None:
        """Return the owner's newest artifact with this BLAKE3 digest, or None if there is none."""
        query = (
            sa.select(artifacts)
            .where(
                artifacts.c.owner == owner,
                artifacts.c.blake3 == blake3,
                artifacts.c.deleted_at.is_(None),
            )
            .order_by(artifacts.c.created_at.desc(), artifacts.c.id)
            .limit(1)
        )
        row = await self._database.fetch_first(query)
        return None if row is None else _parse_stored_artifact(row)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Mark an upload as deleted; its blob stays, since other artifacts may have the same content.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
            ArtifactInUse: the artifact is an output of a job.
        """
        if (await self.get_with_origin(owner, artifact_id)).job_id is not None:
            raise ArtifactInUse(
                f"artifact {artifact_id!r} is an output of a job and is deleted together with the job"
            )
        statement = (
            artifacts.update()
            .where(artifacts.c.id == artifact_id, artifacts.c.deleted_at.is_(None))
            .values(deleted_at=now())
        )
        if await self._database.execute(statement) == 0:
            raise _not_found(artifact_id)

    async def _fetch_row(self, owner: str, artifact_id: str) -> Mapping[Any, Any]:
        query = sa.select(artifacts).where(
            artifacts.c.id == artifact_id, artifacts.c.owner == owner
        )
        row = await self._database.fetch_first(query)
        if row is None:
            raise _not_found(artifact_id)
        return row


def insert_artifacts(
    connection: sa.Connection, new: Iterable[Artifact], *, owner: str, job_id: str | None
) -> None:
    """Store the metadata of artifacts, except those whose ids exist, in the caller's transaction."""
    rows = {
        artifact.id: {
            "id": artifact.id,
            "owner": owner,
            "job_id": job_id,
            "name": artifact.name[:255],
            "media_type": artifact.media_type,
            "size": artifact.size,
            "sha256": artifact.sha256,
            "blake3": artifact.blake3,
            "created_at": now(),
        }
        for artifact in new
    }
    if rows:
        connection.execute(_INSERT[connection.dialect.name], list(rows.values()))


def _not_found(artifact_id: str) -> ArtifactNotFound:
    return ArtifactNotFound(f"artifact {artifact_id!r} does not exist, or you may not see it")


def _parse_stored_artifact(row: Mapping[Any, Any]) -> StoredArtifact:
    created_at = ensure_utc(row["created_at"])
    return StoredArtifact(artifact=parse_artifact(row), job_id=row["job_id"], created_at=created_at)


def parse_artifact(row: Mapping[Any, Any]) -> Artifact:
    """Return the artifact that a row of the table ``artifacts`` describes."""
    return Artifact(**{name: row[name] for name in Artifact.__slots__})
