"""Stores artifact metadata and owners in SQL; the bytes are in `moyin.store.blobs`."""

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

__all__ = [
    "ArtifactStore",
    "artifact_of_row",
    "insert_artifacts",
    "new_artifact_id",
    "step_artifact_id",
]

# Two writers of one id write the same row, so the second write is ignored.
_INSERT = {
    "sqlite": sqlite.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
}


def new_artifact_id() -> str:
    """Return a random artifact id."""
    return f"art_{uuid.uuid4().hex}"


def step_artifact_id(job_id: str, index: int, ordinal: int) -> str:
    """Return the id of output ``ordinal`` of step ``index``, the same on every attempt."""
    return f"art_{uuid.uuid5(uuid.UUID(job_id), f'{index}/{ordinal}').hex}"


class ArtifactStore:
    """Reads and writes artifact rows of one owner at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, artifact: Artifact, *, owner: str, job_id: str | None = None) -> None:
        """Insert an artifact unless its id exists."""
        await self._database.write(
            lambda connection: insert_artifacts(connection, [artifact], owner=owner, job_id=job_id)
        )

    async def get(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
        """
        return (await self.get_stored(owner, artifact_id)).artifact

    async def get_stored(self, owner: str, artifact_id: str) -> StoredArtifact:
        """Return an artifact of the owner, with its job and time of creation.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
        """
        row = await self._row(owner, artifact_id)
        if row["deleted_at"] is not None:
            raise _not_found(artifact_id)
        return _stored(row)

    async def get_for_job(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner for a job that uses it, even if it was deleted since.

        Raises:
            ArtifactNotFound: the owner never had such an artifact.
        """
        return artifact_of_row(await self._row(owner, artifact_id))

    async def id_exists(self, artifact_id: str) -> bool:
        """Return whether an artifact of this id exists or was deleted, of any owner."""
        query = sa.select(artifacts.c.id).where(artifacts.c.id == artifact_id)
        return await self._database.read(lambda c: c.execute(query).first() is not None)

    async def find_by_content(self, owner: str, blake3: str) -> StoredArtifact | None:
        """Return the owner's newest artifact with these bytes."""
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
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        return None if row is None else _stored(row)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Mark an upload deleted; its bytes stay, since other artifacts may have the same.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
            ArtifactInUse: the artifact is the output of a job.
        """
        if (await self.get_stored(owner, artifact_id)).job_id is not None:
            raise ArtifactInUse("an output of a job cannot be deleted before the job")
        statement = (
            artifacts.update()
            .where(artifacts.c.id == artifact_id, artifacts.c.deleted_at.is_(None))
            .values(deleted_at=now())
        )
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                raise _not_found(artifact_id)

    async def _row(self, owner: str, artifact_id: str) -> Mapping[Any, Any]:
        query = sa.select(artifacts).where(
            artifacts.c.id == artifact_id, artifacts.c.owner == owner
        )
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        if row is None:
            raise _not_found(artifact_id)
        return row


def insert_artifacts(
    connection: sa.Connection, new: Iterable[Artifact], *, owner: str, job_id: str | None
) -> None:
    """Insert artifacts whose ids do not exist yet, inside the caller's transaction."""
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
    return ArtifactNotFound(f"there is no artifact {artifact_id!r}")


def _stored(row: Mapping[Any, Any]) -> StoredArtifact:
    created_at = ensure_utc(row["created_at"])
    assert created_at is not None
    return StoredArtifact(
        artifact=artifact_of_row(row), job_id=row["job_id"], created_at=created_at
    )


def artifact_of_row(row: Mapping[Any, Any]) -> Artifact:
    """Return the artifact in a row."""
    return Artifact(
        id=row["id"],
        name=row["name"],
        media_type=row["media_type"],
        size=row["size"],
        sha256=row["sha256"],
        blake3=row["blake3"],
    )
