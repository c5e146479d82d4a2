"""Who owns which artifact; the bytes are in `moyin.store.blobs`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound
from moyin.store.schema import artifacts
from moyin.store.sql import Database, now

__all__ = [
    "ArtifactStore",
    "artifact_of_row",
    "insert_artifacts",
    "new_artifact_id",
    "step_artifact_id",
]


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
        async with self._database.writing() as connection:
            await insert_artifacts(connection, [artifact], owner=owner, job_id=job_id)

    async def get(self, owner: str, artifact_id: str) -> Artifact:
        """The artifact, if ``owner`` owns it.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
        """
        query = sa.select(artifacts).where(
            artifacts.c.id == artifact_id, artifacts.c.owner == owner
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise ArtifactNotFound(f"there is no artifact {artifact_id!r}")
        return artifact_of_row(row)


async def insert_artifacts(
    connection: AsyncConnection, added: Iterable[Artifact], *, owner: str, job_id: str | None
) -> None:
    """Insert rows that are not there yet, inside the caller's transaction."""
    for artifact in added:
        known = sa.select(artifacts.c.id).where(artifacts.c.id == artifact.id)
        if (await connection.execute(known)).first() is None:
            await connection.execute(
                artifacts.insert().values(
                    id=artifact.id,
                    owner=owner,
                    job_id=job_id,
                    name=artifact.name[:255],
                    media_type=artifact.media_type,
                    size=artifact.size,
                    sha256=artifact.sha256,
                    created_at=now(),
                )
            )


def artifact_of_row(row: Mapping[Any, Any]) -> Artifact:
    return Artifact(
        id=row["id"],
        name=row["name"],
        media_type=row["media_type"],
        size=row["size"],
        sha256=row["sha256"],
    )
