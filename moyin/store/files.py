"""Stores one row per file that a tenant keeps for text models; the content is a blob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.stored_file import INTERNAL, StoredFile
from moyin.errors import FileStorageFull, StoredFileNotFound
from moyin.store.schema import files
from moyin.store.sql import Database, ensure_utc, now

_COLUMNS = tuple(StoredFile.__slots__)
# A file's id may be derived, so that a repeated attempt adds it once.
_INSERT = {
    "sqlite": sqlite.insert(files).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(files).on_conflict_do_nothing(index_elements=["id"]),
}
# The largest sum of the sizes of a tenant's files.
MAX_TENANT_BYTES = 100 * 1024**3


class FileStore:
    """Reads and writes the rows of files. Every query is limited to the rows of one tenant.

    Args:
        max_bytes: the maximum total size of a tenant's files in bytes.
    """

    def __init__(self, database: Database, *, max_bytes: int = MAX_TENANT_BYTES) -> None:
        self._database = database
        self._max_bytes = max_bytes

    async def add(self, file: StoredFile) -> None:
        """Add the row of a file unless its id exists; the file's blob must be stored already.

        Raises:
            FileStorageFull: the tenant's files together would exceed ``max_bytes``.
        """

        def write(connection: sa.Connection) -> None:
            used_bytes = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(files.c.size), 0)).where(
                    files.c.owner == file.owner, _is_available()
                )
            ).scalar_one()
            if used_bytes + file.size > self._max_bytes:
                raise FileStorageFull(
                    f"your files have {used_bytes} bytes together, and at most {self._max_bytes} are "
                    "stored: delete files that you no longer need",
                    details={"used_bytes": int(used_bytes), "max_bytes": self._max_bytes},
                )
            insert_files(connection, file)

        await self._database.write(write)

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """Return a file of the tenant, or raise `StoredFileNotFound`."""
        file = await self.find(owner, file_id)
        if file is None:
            raise StoredFileNotFound(
                f"there is no file {file_id[:80]!r}: GET /v1/files lists your files"
            )
        return file

    async def find(
        self, owner: str, file_id: str, *, with_deleted: bool = False
    ) -> StoredFile | None:
        """Return a file, or None if the tenant has none with this id.

        ``with_deleted`` includes deleted files, because open batches may still read them.
        """
        query = sa.select(files).where(files.c.owner == owner, files.c.id == file_id)
        if not with_deleted:
            query = query.where(_is_available())
        row = await self._database.fetch_first(query)
        return None if row is None else _parse_file(row)

    async def list_page(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        limit: int = 10_000,
        after_id: str | None = None,
        newest_first: bool = True,
    ) -> tuple[list[StoredFile], bool]:
        """Return a page of the tenant's files, and True if there are more.

        Args:
            after_id: the id of the last file of the previous page.

        Raises:
            StoredFileNotFound: there is no file ``after_id``.
        """
        query = sa.select(files).where(
            files.c.owner == owner, files.c.purpose != INTERNAL, _is_available()
        )
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        row_position = sa.tuple_(files.c.created_at, files.c.id)
        if after_id is not None:
            last_file = await self.find(owner, after_id, with_deleted=True)
            if last_file is None:
                raise StoredFileNotFound(
                    f"after must be the id of one of your files, but there is no file {after_id[:80]!r}"
                )
            last_position = sa.tuple_(
                sa.literal(last_file.created_at, files.c.created_at.type), sa.literal(last_file.id)
            )
            query = query.where(
                row_position < last_position if newest_first else row_position > last_position
            )
        order = (files.c.created_at, files.c.id)
        query = query.order_by(*(c.desc() if newest_first else c.asc() for c in order))
        rows = await self._database.fetch_all(query.limit(limit + 1))
        return [_parse_file(row) for row in rows[:limit]], len(rows) > limit

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete a file, or raise `StoredFileNotFound`; pruning deletes its blob later."""
        statement = (
            files.update()
            .where(files.c.owner == owner, files.c.id == file_id, _is_available())
            .values(deleted_at=now())
        )
        if not await self._database.write(lambda c: c.execute(statement).rowcount):
            raise StoredFileNotFound(
                f"there is no file {file_id[:80]!r}: GET /v1/files lists your files"
            )


def insert_files(connection: sa.Connection, *new_files: StoredFile) -> None:
    """Insert the rows of files in the caller's transaction; skip ids that exist already."""
    rows = [{name: getattr(file, name) for name in _COLUMNS} for file in new_files]
    if rows:
        connection.execute(_INSERT[connection.dialect.name], rows)


def _is_available() -> sa.ColumnElement[bool]:
    return sa.and_(
        files.c.deleted_at.is_(None),
        sa.or_(files.c.expires_at.is_(None), files.c.expires_at > now()),
    )


def _parse_file(row: Mapping[Any, Any]) -> StoredFile:
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    for name in ("created_at", "expires_at"):
        values[name] = ensure_utc(values[name])
    return StoredFile(**values)
