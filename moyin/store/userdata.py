"""Stores files of ComfyUI's frontend per tenant and user, as rows, since they are small."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.userdata import UserdataScope, UserFile
from moyin.errors import FileExists, UserFileNotFound, UserStorageFull
from moyin.store.schema import userdata
from moyin.store.sql import Database, Transaction, ensure_utc, now

__all__ = ["UserdataStore"]

_MAX_FILE = 8 * 1024 * 1024
_MAX_BYTES = 64 * 1024 * 1024
_MAX_FILES = 2_000
_TRIES = 20
_INFO_COLUMNS = (userdata.c.path, userdata.c.size, userdata.c.created_at, userdata.c.modified_at)


class UserdataStore:
    """Reads and writes files of one scope, a tenant's user, at a time.

    Args:
        max_file: the maximum size of one file in bytes.
        max_bytes, max_files: the maximum total size in bytes, and number of files, of one scope.
    """

    def __init__(
        self,
        database: Database,
        *,
        max_file: int = _MAX_FILE,
        max_bytes: int = _MAX_BYTES,
        max_files: int = _MAX_FILES,
    ) -> None:
        self._database = database
        self._max_file = max_file
        self._max_bytes = max_bytes
        self._max_files = max_files

    async def list(self, scope: UserdataScope) -> list[UserFile]:
        """Return all files, ordered by path."""
        query = sa.select(*_INFO_COLUMNS).where(_in_scope(scope)).order_by(userdata.c.path)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_file(row) for row in rows]

    async def read(self, scope: UserdataScope, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            UserFileNotFound: the file does not exist.
        """
        query = sa.select(userdata.c.content).where(_at_path(scope, path))
        content: bytes | None = await self._database.read(lambda c: c.execute(query).scalar())
        if content is None:
            raise _missing(path)
        return content

    async def write(
        self, scope: UserdataScope, path: str, content: bytes, *, overwrite: bool = True
    ) -> UserFile:
        """Write a file.

        Raises:
            FileExists: ``path`` exists and ``overwrite`` is false.
            UserStorageFull: the file is too large, or the scope is full.
        """
        self._check_size(content)
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    digest = await _digest(connection, scope, path)
                    if digest is not None and not overwrite:
                        raise FileExists(f"there is a file {path!r} already")
                    await self._check_room(connection, scope, path, len(content))
                    return await _put(connection, scope, path, content, exists=digest is not None)
            except IntegrityError:
                # A concurrent writer created the file. Retry, now that it exists.
                continue
        raise FileExists(f"{path!r} is being written by other requests; try again")

    async def update(
        self, scope: UserdataScope, path: str, change: Callable[[bytes | None], bytes]
    ) -> None:
        """Replace the content of a file by the result of ``change``, without lost updates.

        Args:
            change: gets the present content, None if the file does not exist.

        Raises:
            UserStorageFull: see `write`.
        """
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    query = (
                        sa.select(userdata.c.content).where(_at_path(scope, path)).with_for_update()
                    )
                    before: bytes | None = (await connection.execute(query)).scalar()
                    after = change(before)
                    self._check_size(after)
                    await self._check_room(connection, scope, path, len(after))
                    await _put(connection, scope, path, after, exists=before is not None)
                    return
            except IntegrityError:
                continue
        raise FileExists(f"{path!r} is being written by other requests; try again")

    async def move(
        self, scope: UserdataScope, path: str, to: str, *, overwrite: bool = True
    ) -> UserFile:
        """Move a file from ``path`` to ``to``.

        Raises:
            UserFileNotFound: ``path`` does not exist.
            FileExists: ``to`` exists and ``overwrite`` is false.
        """
        async with self._database.writing() as connection:
            if await _digest(connection, scope, path) is None:
                raise _missing(path)
            if path != to and await _digest(connection, scope, to) is not None:
                if not overwrite:
                    raise FileExists(f"there is a file {to!r} already")
                await connection.execute(userdata.delete().where(_at_path(scope, to)))
            await connection.execute(userdata.update().where(_at_path(scope, path)).values(path=to))
            row = (
                await connection.execute(sa.select(*_INFO_COLUMNS).where(_at_path(scope, to)))
            ).mappings()
            return _file(row.one())

    async def delete(self, scope: UserdataScope, path: str) -> None:
        """Delete a file.

        Raises:
            UserFileNotFound: the file does not exist.
        """
        async with self._database.writing() as connection:
            deleted = await connection.execute(userdata.delete().where(_at_path(scope, path)))
        if deleted.rowcount == 0:
            raise _missing(path)

    def _check_size(self, content: bytes) -> None:
        if len(content) > self._max_file:
            raise UserStorageFull(f"a file must not be larger than {self._max_file} bytes")

    async def _check_room(
        self, connection: Transaction, scope: UserdataScope, path: str, size: int
    ) -> None:
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(userdata.c.size), 0))
        others = query.where(_in_scope(scope), userdata.c.path != path)
        row: Any = (await connection.execute(others)).one()
        files, used = row
        if files >= self._max_files or used + size > self._max_bytes:
            raise UserStorageFull(
                f"files must not exceed {self._max_files} in number and {self._max_bytes} bytes in total",
                details={"files": files, "bytes": int(used)},
            )


async def _put(
    connection: Transaction, scope: UserdataScope, path: str, content: bytes, *, exists: bool
) -> UserFile:
    moment = now()
    values = {
        "content": content,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "modified_at": moment,
    }
    if exists:
        await connection.execute(userdata.update().where(_at_path(scope, path)).values(values))
    else:
        key = {"owner": scope.owner, "user_id": scope.user, "path": path, "created_at": moment}
        await connection.execute(userdata.insert().values(values | key))
    row = (
        await connection.execute(sa.select(*_INFO_COLUMNS).where(_at_path(scope, path)))
    ).mappings()
    return _file(row.one())


async def _digest(connection: Transaction, scope: UserdataScope, path: str) -> str | None:
    query = sa.select(userdata.c.sha256).where(_at_path(scope, path)).with_for_update()
    digest: str | None = (await connection.execute(query)).scalar()
    return digest


def _in_scope(scope: UserdataScope) -> sa.ColumnElement[bool]:
    return sa.and_(userdata.c.owner == scope.owner, userdata.c.user_id == scope.user)


def _at_path(scope: UserdataScope, path: str) -> sa.ColumnElement[bool]:
    return sa.and_(_in_scope(scope), userdata.c.path == path)


def _file(row: Mapping[Any, Any]) -> UserFile:
    return UserFile(
        path=row["path"],
        size=row["size"],
        created=ensure_utc(row["created_at"]) or now(),
        modified=ensure_utc(row["modified_at"]) or now(),
    )


def _missing(path: str) -> UserFileNotFound:
    return UserFileNotFound(f"there is no file {path!r}")
