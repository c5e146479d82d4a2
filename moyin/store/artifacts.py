"""Who owns which artifact; the bytes are in `moyin.store.blobs`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.errors import ArtifactInUse, ArtifactNotFound
from moyin.store.schema import artifacts
from moyin.store.sql import Database, aware, now

__all__ = [
    "ArtifactStore",
    "artifact_of_row",
    "insert_artifacts",
    "new_artifact_id",
    "step_artifact_id",
]

# Two that write the same row at once are no conflict: its id says what it is.
_INSERT = {
    "sqlite": sqlite.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
}


def new_artifact_id() -> str:
    return f"art_{uuid.uuid4().hex}"


def step_artifact_id(job_id: str, index: int, ordinal: int) -> str:
    """The id of output number ``ordinal`` of step ``index``: the same on every attempt."""
    return f"art_{uuid.uuid5(uuid.UUID(job_id), f'{index}/{ordinal}').hex}"


class ArtifactStore:
    """Artifact rows, always read through their owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, artifact: Artifact, *, owner: str, job_id: str | None = None) -> None:
        await self._database.write(
            lambda connection: insert_artifacts(connection, [artifact], owner=owner, job_id=job_id)
        )

    async def get(self, owner: str, artifact_id: str) -> Artifact:
        """The artifact, if ``owner`` owns it.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
        """
        return (await self.stored(owner, artifact_id)).artifact

    async def stored(self, owner: str, artifact_id: str) -> StoredArtifact:
        """The same with its origin.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
        """
        row = await self._row(owner, artifact_id)
        if row["deleted_at"] is not None:
            raise _not_found(artifact_id)
        return _stored(row)

    async def for_job(self, owner: str, artifact_id: str) -> Artifact:
        """The same for a job that was accepted with it: its owner may have deleted it since.

        Raises:
            ArtifactNotFound: there never was one, or it is somebody else's.
        """
        return artifact_of_row(await self._row(owner, artifact_id))

    async def taken(self, artifact_id: str) -> bool:
        """Whether anybody has, or had, an artifact of this id."""
        query = sa.select(artifacts.c.id).where(artifacts.c.id == artifact_id)
        return await self._database.read(lambda c: c.execute(query).first() is not None)

    async def with_content(self, owner: str, blake3: str) -> StoredArtifact | None:
        """The owner's newest upload with these bytes."""
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
        """Take an upload away from its owner; its bytes may be another's as well.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
            ArtifactInUse: it is the output of a job.
        """
        if (await self.stored(owner, artifact_id)).job_id is not None:
            raise ArtifactInUse("the output of a job stays for as long as the job")
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
    connection: sa.Connection, added: Iterable[Artifact], *, owner: str, job_id: str | None
) -> None:
    """Insert rows that are not there yet, inside the caller's transaction."""
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
        for artifact in added
    }
    if rows:
        connection.execute(_INSERT[connection.dialect.name], list(rows.values()))


def _not_found(artifact_id: str) -> ArtifactNotFound:
    return ArtifactNotFound(f"there is no artifact {artifact_id!r}")


def _stored(row: Mapping[Any, Any]) -> StoredArtifact:
    created_at = aware(row["created_at"])
    assert created_at is not None
    return StoredArtifact(
        artifact=artifact_of_row(row), job_id=row["job_id"], created_at=created_at
    )


def artifact_of_row(row: Mapping[Any, Any]) -> Artifact:
    return Artifact(
        id=row["id"],
        name=row["name"],
        media_type=row["media_type"],
        size=row["size"],
        sha256=row["sha256"],
        blake3=row["blake3"],
    )
