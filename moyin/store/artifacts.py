"""Stores the metadata and owners of artifacts in SQL; `moyin.store.blobs` stores their bytes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.errors import ArtifactInUse, ArtifactNotFound, FileStorageFull
from moyin.store.job_filter import JobFilter
from moyin.store.pages import Condition, PageQuery, fetch_page
from moyin.store.schema import artifacts, jobs, uploads
from moyin.store.sql import Database, ensure_utc, now

# Of so many of the newest outputs with a name, those of the preferred jobs come first. More would
# make a request as expensive as the number of the owner's renders.
_MAX_SAME_NAME = 200
# The largest sum of the sizes of a tenant's uploads.
MAX_UPLOAD_BYTES = 100 * 1024**3
# Concurrent writers of an id write the same row, so the second write is ignored.
_INSERT = {
    "sqlite": sqlite.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(artifacts).on_conflict_do_nothing(index_elements=["id"]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactFilter:
    """Selects the artifacts of an owner that meet all conditions; None means no condition.

    Attributes:
        job_id: the id of the job that made the artifact.
        media_type: a media type, or a pattern for several, such as ``image/*``.
        created_after: the earliest time at which the artifact was stored.
        created_before: the time before which the artifact was stored.
        favourite: True selects favourites only, False all other artifacts.
        template: the template of one of the steps of the job that made the artifact.
        user_id: the id of the person who submitted that job.
        metadata: keys and values that the metadata of that job must contain.
    """

    job_id: str | None = None
    media_type: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    favourite: bool | None = None
    template: str | None = None
    user_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def build_query(self, owner: str, dialect: str) -> PageQuery:
        """Return the query for those artifacts of the owner that meet the conditions.

        Indexes cover the conditions on times, on `job_id` and on favourites (`favourite=True`).
        All other conditions are checked row by row.
        """
        conditions: list[Condition] = [artifacts.c.deleted_at.is_(None)]
        if self.job_id is None:
            conditions.append(artifacts.c.owner == owner)
        else:
            # Concatenated, the owner has no index, which SQLite would prefer to that of the job
            # although the owner may have many artifacts.
            conditions += [artifacts.c.owner.concat("") == owner, artifacts.c.job_id == self.job_id]
        if self.created_after is not None:
            conditions.append(artifacts.c.created_at >= self.created_after)
        if self.created_before is not None:
            conditions.append(artifacts.c.created_at < self.created_before)
        if self.favourite is True:
            # Not `is_(True)`: the index of favourites has the plain column in its condition.
            conditions.append(artifacts.c.favourite)
        if self.job_id is None and not self._has_scanned_conditions:
            return PageQuery(table=artifacts, ranges=[conditions])
        return PageQuery(
            table=artifacts,
            ranges=[conditions],
            scanned=lambda columns: self._build_scanned_conditions(columns, owner, dialect),
        )

    @property
    def _has_scanned_conditions(self) -> bool:
        return (
            self.media_type is not None
            or self.favourite is False
            or self._job_filter != JobFilter()
            or self.user_id is not None
        )

    @property
    def _job_filter(self) -> JobFilter:
        return JobFilter(template=self.template, metadata=self.metadata)

    def _build_scanned_conditions(self, columns: Any, owner: str, dialect: str) -> list[Condition]:
        conditions: list[Condition] = []
        if self.media_type is not None and self.media_type.endswith("/*"):
            prefix = self.media_type[:-1]
            conditions.append(columns.media_type.startswith(prefix, autoescape=True))
        elif self.media_type is not None:
            conditions.append(columns.media_type == self.media_type)
        if self.favourite is False:
            conditions.append(sa.not_(columns.favourite))
        job_conditions = self._job_filter.build_row_conditions(jobs.c, dialect)
        if self.user_id is not None:
            job_conditions.append(jobs.c.user_id == self.user_id)
        if job_conditions:
            # Not the plain owner column: SQLite would then read the index of the owner's jobs.
            is_source_job = (jobs.c.id == columns.job_id, jobs.c.owner.concat("") == owner)
            conditions.append(sa.exists().where(*is_source_job, *job_conditions))
        return conditions


def generate_artifact_id() -> str:
    """Return a new random artifact id."""
    return f"art_{uuid.uuid4().hex}"


def derive_step_artifact_id(job_id: str, index: int, ordinal: int) -> str:
    """Return the id of an output of a job's step; it is the same for every attempt of the job.

    Args:
        index: the position of the step in the job.
        ordinal: the position of the output in the step.
    """
    return f"art_{uuid.uuid5(uuid.UUID(job_id), f'{index}/{ordinal}').hex}"


class ArtifactStore:
    """Reads and writes the rows of artifacts.

    Args:
        max_upload_bytes: the maximum total size of a tenant's uploads in bytes.
    """

    def __init__(self, database: Database, *, max_upload_bytes: int = MAX_UPLOAD_BYTES) -> None:
        self._database = database
        self._max_upload_bytes = max_upload_bytes

    async def require_room(self, owner: str, size: int) -> None:
        """Raise `FileStorageFull` if an upload of ``size`` bytes would exceed the tenant's maximum."""
        await self._database.read(
            lambda connection: enforce_upload_quota(
                connection, owner, size, max_bytes=self._max_upload_bytes
            )
        )

    async def add(self, artifact: Artifact, *, owner: str, job_id: str | None = None) -> None:
        """Store the metadata of an artifact unless its id exists already.

        Without ``job_id`` it is an upload; raise `FileStorageFull` if the tenant has no room for it.
        """

        def add(connection: sa.Connection) -> None:
            if job_id is None:
                self._enforce_quota(connection, owner, artifact)
            insert_artifacts(connection, [artifact], owner=owner, job_id=job_id)

        await self._database.write(add)

    async def add_or_restore(self, artifact: Artifact, *, owner: str) -> None:
        """Store the metadata of an upload; restore the artifact if its owner had deleted it.

        An existing artifact with this id but other content or another owner is left unchanged.

        Raises:
            FileStorageFull: the tenant has no room for the upload.
        """

        def add(connection: sa.Connection) -> None:
            self._enforce_quota(connection, owner, artifact)
            insert_artifacts(connection, [artifact], owner=owner, job_id=None)
            update = artifacts.update().where(
                artifacts.c.id == artifact.id,
                artifacts.c.owner == owner,
                artifacts.c.sha256 == artifact.sha256,
                artifacts.c.deleted_at.is_not(None),
            )
            values: dict[str, Any]
            values = {"name": artifact.name[:255], "media_type": artifact.media_type}
            values |= {"deleted_at": None, "created_at": now(), "favourite": False}
            connection.execute(update.values(**values))

        await self._database.write(add)

    async def get(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner; raise `ArtifactNotFound` if there is none."""
        return (await self.get_with_origin(owner, artifact_id)).artifact

    async def get_with_origin(self, owner: str, artifact_id: str) -> StoredArtifact:
        """Return an artifact of the owner with its job and creation time, or raise `ArtifactNotFound`."""
        row = await self._fetch_row(owner, artifact_id)
        if row["deleted_at"] is not None:
            raise _new_not_found_error(artifact_id)
        return _parse_stored_artifact(row)

    async def get_even_if_deleted(self, owner: str, artifact_id: str) -> Artifact:
        """Return an artifact of the owner, even a deleted one, or raise `ArtifactNotFound`."""
        return parse_artifact(await self._fetch_row(owner, artifact_id))

    async def is_id_used(self, artifact_id: str) -> bool:
        """Return whether an artifact of any owner, even a deleted one, has this id."""
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

    async def find_newest_output(
        self, owner: str, name: str, is_preferred: sa.ColumnElement[bool]
    ) -> Artifact | None:
        """Return the owner's newest job output with the file name ``name``, or None.

        Args:
            is_preferred: an SQL condition on jobs; outputs of jobs that meet it are chosen before
                newer outputs of other jobs.
        """
        newest_outputs = (
            sa.select(artifacts)
            .where(
                artifacts.c.owner == owner,
                artifacts.c.name == name,
                artifacts.c.job_id.is_not(None),
                artifacts.c.deleted_at.is_(None),
            )
            .order_by(artifacts.c.created_at.desc(), artifacts.c.id.desc())
            .limit(_MAX_SAME_NAME)
            .subquery()
        )
        query = (
            sa.select(newest_outputs)
            .join(jobs, jobs.c.id == newest_outputs.c.job_id)
            .order_by(
                sa.case((is_preferred, 0), else_=1),
                newest_outputs.c.created_at.desc(),
                newest_outputs.c.id.desc(),
            )
            .limit(1)
        )
        row = await self._database.fetch_first(query)
        return None if row is None else parse_artifact(row)

    async def list_page(
        self, owner: str, artifact_filter: ArtifactFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[list[StoredArtifact], str | None]:
        """Return a page of the owner's artifacts, newest first, and the cursor of the next page.

        If no index covers the conditions, a page may have fewer artifacts than ``limit``, or none,
        although another page follows.
        """

        def fetch(connection: sa.Connection) -> tuple[Sequence[Mapping[Any, Any]], str | None]:
            query = artifact_filter.build_query(owner, connection.dialect.name)
            page = fetch_page(connection, query, limit=limit, cursor=cursor)
            artifacts_query = (
                sa.select(artifacts)
                .where(artifacts.c.id.in_(page.ids))
                .order_by(artifacts.c.created_at.desc(), artifacts.c.id.desc())
            )
            return connection.execute(artifacts_query).mappings().all(), page.next_cursor

        rows, next_cursor = await self._database.read(fetch)
        return [_parse_stored_artifact(row) for row in rows], next_cursor

    async def list_by_ids(self, owner: str, ids: Sequence[str]) -> list[StoredArtifact]:
        """Return the owner's artifacts with these ids, in this order, or raise `ArtifactNotFound`."""
        query = sa.select(artifacts).where(
            artifacts.c.id.in_(ids), artifacts.c.owner == owner, artifacts.c.deleted_at.is_(None)
        )
        rows = await self._database.fetch_all(query)
        artifacts_by_id = {row["id"]: _parse_stored_artifact(row) for row in rows}
        missing_id = next(
            (artifact_id for artifact_id in ids if artifact_id not in artifacts_by_id), None
        )
        if missing_id is not None:
            raise _new_not_found_error(missing_id)
        return [artifacts_by_id[artifact_id] for artifact_id in ids]

    async def set_favourite(self, owner: str, artifact_id: str, is_favourite: bool) -> None:
        """Set or clear an artifact's favourite mark; raise `ArtifactNotFound` if none exists."""
        update = artifacts.update().where(
            artifacts.c.id == artifact_id,
            artifacts.c.owner == owner,
            artifacts.c.deleted_at.is_(None),
        )
        update = update.values(favourite=is_favourite)
        if await self._database.write(lambda connection: connection.execute(update).rowcount) == 0:
            raise _new_not_found_error(artifact_id)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Hide an upload from its owner, and delete the ComfyUI file names that refer to it.

        Open jobs that use the upload can still read it. `moyin.store.deletion_pruning` deletes the
        upload's blob later, unless something else refers to the blob.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
            ArtifactInUse: the artifact is an output of a job.
        """
        job_id = (await self.get_with_origin(owner, artifact_id)).job_id
        if job_id is not None:
            raise ArtifactInUse(
                f"artifact {artifact_id!r} is an output of job {job_id} and can only be deleted with it: "
                "delete the job"
            )

        def hide(connection: sa.Connection) -> int:
            update = artifacts.update().where(
                artifacts.c.id == artifact_id, artifacts.c.deleted_at.is_(None)
            )
            connection.execute(uploads.delete().where(uploads.c.artifact_id == artifact_id))
            return connection.execute(update.values(deleted_at=now())).rowcount

        if await self._database.write(hide) == 0:
            raise _new_not_found_error(artifact_id)

    def _enforce_quota(self, connection: sa.Connection, owner: str, artifact: Artifact) -> None:
        enforce_upload_quota(connection, owner, artifact.size, max_bytes=self._max_upload_bytes)

    async def _fetch_row(self, owner: str, artifact_id: str) -> Mapping[Any, Any]:
        query = sa.select(artifacts).where(
            artifacts.c.id == artifact_id, artifacts.c.owner == owner
        )
        row = await self._database.fetch_first(query)
        if row is None:
            raise _new_not_found_error(artifact_id)
        return row


def enforce_upload_quota(
    connection: sa.Connection, owner: str, size: int, *, max_bytes: int
) -> None:
    """Raise `FileStorageFull` if another upload of ``size`` bytes would exceed ``max_bytes``.

    Files of ``/v1/files`` have a quota of the same size of their own (`moyin.store.files`).
    """
    query = sa.select(sa.func.coalesce(sa.func.sum(artifacts.c.size), 0)).where(
        artifacts.c.owner == owner, artifacts.c.job_id.is_(None), artifacts.c.deleted_at.is_(None)
    )
    used_bytes = int(connection.execute(query).scalar_one())
    if used_bytes + size > max_bytes:
        raise FileStorageFull(
            f"your uploads have {used_bytes} bytes together, and at most {max_bytes} are stored: "
            "delete artifacts that you no longer need",
            details={"used_bytes": used_bytes, "max_bytes": max_bytes},
        )


def insert_artifacts(
    connection: sa.Connection, new_artifacts: Iterable[Artifact], *, owner: str, job_id: str | None
) -> None:
    """Insert the metadata of artifacts in the caller's transaction; skip ids that exist already."""
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
        for artifact in new_artifacts
    }
    if rows:
        connection.execute(_INSERT[connection.dialect.name], list(rows.values()))


def _new_not_found_error(artifact_id: str) -> ArtifactNotFound:
    return ArtifactNotFound(f"artifact {artifact_id!r} does not exist, or you may not see it")


def _parse_stored_artifact(row: Mapping[Any, Any]) -> StoredArtifact:
    return StoredArtifact(
        artifact=parse_artifact(row),
        job_id=row["job_id"],
        created_at=ensure_utc(row["created_at"]),
        favourite=row["favourite"],
    )


def parse_artifact(row: Mapping[Any, Any]) -> Artifact:
    """Return the artifact that a row of the table ``artifacts`` describes."""
    return Artifact(**{name: row[name] for name in Artifact.__slots__})
