"""Stores the small files of ComfyUI's frontend, such as settings, as rows per tenant and user."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.identity import UserdataScope, UserFile
from moyin.errors import FileExists, UserFileNotFound, UserStorageFull
from moyin.store.schema import userdata
from moyin.store.sql import Database, Transaction, ensure_utc, now

_MAX_FILE = 8 * 1024 * 1024
_MAX_BYTES = 64 * 1024 * 1024
_MAX_FILES = 2_000
_TRIES = 20
_METADATA_COLUMNS = (
    userdata.c.path,
    userdata.c.size,
    userdata.c.created_at,
    userdata.c.modified_at,
)


class UserdataStore:
    """Reads and writes files by path within a scope: a user, or all keys of a tenant.

    Args:
        max_file_bytes: the maximum size of a file in bytes.
        max_bytes: the maximum size of all files of a scope in bytes.
        max_files: the maximum number of files of a scope.
    """

    def __init__(
        self,
        database: Database,
        *,
        max_file_bytes: int = _MAX_FILE,
        max_bytes: int = _MAX_BYTES,
        max_files: int = _MAX_FILES,
    ) -> None:
        self._database = database
        self._max_file_bytes = max_file_bytes
        self._max_bytes = max_bytes
        self._max_files = max_files

    async def list(self, scope: UserdataScope) -> list[UserFile]:
        """Return the metadata of all files of a scope, ordered by path."""
        query = sa.select(*_METADATA_COLUMNS).where(_is_in_scope(scope)).order_by(userdata.c.path)
        return [_parse_file(row) for row in await self._database.fetch_all(query)]

    async def read(self, scope: UserdataScope, path: str) -> bytes:
        """Return the content of a file, or raise `UserFileNotFound`."""
        query = sa.select(userdata.c.content).where(_is_at_path(scope, path))
        content: bytes | None = await self._database.fetch_value(query)
        if content is None:
            raise _new_not_found_error(path)
        return content

    async def write(
        self, scope: UserdataScope, path: str, content: bytes, *, overwrite: bool = True
    ) -> UserFile:
        """Write a file and return its metadata.

        Raises:
            FileExists: the file exists and ``overwrite`` is False.
            UserStorageFull: the file or the scope would be too large.
        """
        self._require_allowed_size(path, content)
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    digest = await _lock_file(connection, scope, path)
                    if digest is not None and not overwrite:
                        raise FileExists(f"file {path!r} exists; set overwrite to replace it")
                    await self._enforce_limits(connection, scope, path, len(content))
                    return await _insert_or_update(
                        connection, scope, path, content, file_exists=digest is not None
                    )
            except IntegrityError:
                # A concurrent writer has created the file, so the next attempt finds it.
                continue
        raise _new_conflict_error(path)

    async def update(
        self, scope: UserdataScope, path: str, compute_content: Callable[[bytes | None], bytes]
    ) -> None:
        """Replace the content of a file by the result of ``compute_content``, in one transaction.

        Args:
            compute_content: computes the new content from the current one, which is None if the
                file does not exist.

        Raises:
            UserStorageFull: the file or the scope would be too large.
        """
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    query = (
                        sa.select(userdata.c.content)
                        .where(_is_at_path(scope, path))
                        .with_for_update()
                    )
                    current_content: bytes | None = (await connection.execute(query)).scalar()
                    new_content = compute_content(current_content)
                    self._require_allowed_size(path, new_content)
                    await self._enforce_limits(connection, scope, path, len(new_content))
                    await _insert_or_update(
                        connection,
                        scope,
                        path,
                        new_content,
                        file_exists=current_content is not None,
                    )
                    return
            except IntegrityError:
                continue
        raise _new_conflict_error(path)

    async def move(
        self, scope: UserdataScope, path: str, new_path: str, *, overwrite: bool = True
    ) -> UserFile:
        """Move a file to ``new_path`` and return its metadata.

        Raises:
            UserFileNotFound: ``path`` does not exist.
            FileExists: ``new_path`` exists and ``overwrite`` is False.
        """
        async with self._database.writing() as connection:
            if await _lock_file(connection, scope, path) is None:
                raise _new_not_found_error(path)
            if path != new_path and await _lock_file(connection, scope, new_path) is not None:
                if not overwrite:
                    raise FileExists(f"file {new_path!r} exists; set overwrite to replace it")
                await connection.execute(userdata.delete().where(_is_at_path(scope, new_path)))
            await connection.execute(
                userdata.update().where(_is_at_path(scope, path)).values(path=new_path)
            )
            return await _read_metadata(connection, scope, new_path)

    async def delete(self, scope: UserdataScope, path: str) -> None:
        """Delete a file, or raise `UserFileNotFound`."""
        if await self._database.execute(userdata.delete().where(_is_at_path(scope, path))) == 0:
            raise _new_not_found_error(path)

    def _require_allowed_size(self, path: str, content: bytes) -> None:
        if len(content) > self._max_file_bytes:
            raise UserStorageFull(
                f"file {path!r} has {len(content)} bytes; at most {self._max_file_bytes} are allowed"
            )

    async def _enforce_limits(
        self, connection: Transaction, scope: UserdataScope, path: str, size: int
    ) -> None:
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(userdata.c.size), 0))
        other_files = query.where(_is_in_scope(scope), userdata.c.path != path)
        row: Any = (await connection.execute(other_files)).one()
        file_count, used_bytes = row
        if file_count >= self._max_files or used_bytes + size > self._max_bytes:
            raise UserStorageFull(
                f"a user may store at most {self._max_files} files with {self._max_bytes} bytes together: "
                "delete files that are no longer needed",
                details={"files": file_count, "bytes": int(used_bytes)},
            )


async def _insert_or_update(
    connection: Transaction, scope: UserdataScope, path: str, content: bytes, *, file_exists: bool
) -> UserFile:
    modified_at = now()
    values = {
        "content": content,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "modified_at": modified_at,
    }
    if file_exists:
        await connection.execute(userdata.update().where(_is_at_path(scope, path)).values(values))
    else:
        key = {"owner": scope.owner, "user_id": scope.user, "path": path, "created_at": modified_at}
        await connection.execute(userdata.insert().values(values | key))
    return await _read_metadata(connection, scope, path)


async def _read_metadata(connection: Transaction, scope: UserdataScope, path: str) -> UserFile:
    query = sa.select(*_METADATA_COLUMNS).where(_is_at_path(scope, path))
    return _parse_file((await connection.execute(query)).mappings().one())


async def _lock_file(connection: Transaction, scope: UserdataScope, path: str) -> str | None:
    """Lock a file's row for the transaction; return the file's digest, or None if none exists."""
    query = sa.select(userdata.c.sha256).where(_is_at_path(scope, path)).with_for_update()
    digest: str | None = (await connection.execute(query)).scalar()
    return digest


def _is_in_scope(scope: UserdataScope) -> sa.ColumnElement[bool]:
    return sa.and_(userdata.c.owner == scope.owner, userdata.c.user_id == scope.user)


def _is_at_path(scope: UserdataScope, path: str) -> sa.ColumnElement[bool]:
    return sa.and_(_is_in_scope(scope), userdata.c.path == path)


def _parse_file(row: Mapping[Any, Any]) -> UserFile:
    return UserFile(
        path=row["path"],
        size=row["size"],
        created=ensure_utc(row["created_at"]),
        modified=ensure_utc(row["modified_at"]),
    )


def _new_conflict_error(path: str) -> FileExists:
    return FileExists(f"file {path!r} is being written by other requests; try again")


def _new_not_found_error(path: str) -> UserFileNotFound:
    return UserFileNotFound(f"file {path!r} does not exist; check the path")
