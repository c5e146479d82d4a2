"""Files of ComfyUI's frontend, by tenant and person. Small, so they are rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.userdata import UserdataScope, UserFile
from moyin.errors import FileExists, UserFileNotFound, UserStorageFull
from moyin.store.schema import userdata
from moyin.store.sql import Database, Transaction, aware, now

__all__ = ["UserdataStore"]

_MAX_FILE = 8 * 1024 * 1024
_MAX_BYTES = 64 * 1024 * 1024
_MAX_FILES = 2_000
_TRIES = 20
_SHOWN = (userdata.c.path, userdata.c.size, userdata.c.created_at, userdata.c.modified_at)


class UserdataStore:
    """Rows are read and written through their shelf alone.

    Args:
        max_file, max_bytes, max_files: of one shelf.
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

    async def list(self, shelf: UserdataScope) -> list[UserFile]:
        """All files, by path."""
        query = sa.select(*_SHOWN).where(_on(shelf)).order_by(userdata.c.path)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_file(row) for row in rows]

    async def read(self, shelf: UserdataScope, path: str) -> bytes:
        """
        Raises:
            UserFileNotFound: there is no such file.
        """
        query = sa.select(userdata.c.content).where(_at(shelf, path))
        content: bytes | None = await self._database.read(lambda c: c.execute(query).scalar())
        if content is None:
            raise _missing(path)
        return content

    async def write(
        self, shelf: UserdataScope, path: str, content: bytes, *, overwrite: bool = True
    ) -> UserFile:
        """Put a file there.

        Raises:
            FileExists: there is one, and ``overwrite`` is false.
            UserStorageFull: it is too large, or the shelf is full.
        """
        self._check_size(content)
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    known = await _digest(connection, shelf, path)
                    if known is not None and not overwrite:
                        raise FileExists(f"there is a file {path!r} already")
                    await self._check_room(connection, shelf, path, len(content))
                    return await _put(connection, shelf, path, content, known=known is not None)
            except IntegrityError:
                # Somebody made it at the same moment: it is there now.
                continue
        raise FileExists(f"{path!r} is being written by others")

    async def update(
        self, shelf: UserdataScope, path: str, change: Callable[[bytes | None], bytes]
    ) -> None:
        """Replace a file by what ``change`` makes of it; no change made meanwhile is lost.

        Raises:
            UserStorageFull: as `write` does.
        """
        for _ in range(_TRIES):
            try:
                async with self._database.writing() as connection:
                    query = sa.select(userdata.c.content).where(_at(shelf, path)).with_for_update()
                    before: bytes | None = (await connection.execute(query)).scalar()
                    after = change(before)
                    self._check_size(after)
                    await self._check_room(connection, shelf, path, len(after))
                    await _put(connection, shelf, path, after, known=before is not None)
                    return
            except IntegrityError:
                continue
        raise FileExists(f"{path!r} is being written by others")

    async def move(
        self, shelf: UserdataScope, path: str, to: str, *, overwrite: bool = True
    ) -> UserFile:
        """Give a file another path.

        Raises:
            UserFileNotFound: there is none at ``path``.
            FileExists: there is one at ``to``, and ``overwrite`` is false.
        """
        async with self._database.writing() as connection:
            if await _digest(connection, shelf, path) is None:
                raise _missing(path)
            if path != to and await _digest(connection, shelf, to) is not None:
                if not overwrite:
                    raise FileExists(f"there is a file {to!r} already")
                await connection.execute(userdata.delete().where(_at(shelf, to)))
            await connection.execute(userdata.update().where(_at(shelf, path)).values(path=to))
            row = (await connection.execute(sa.select(*_SHOWN).where(_at(shelf, to)))).mappings()
            return _file(row.one())

    async def delete(self, shelf: UserdataScope, path: str) -> None:
        """
        Raises:
            UserFileNotFound: there is no such file.
        """
        async with self._database.writing() as connection:
            deleted = await connection.execute(userdata.delete().where(_at(shelf, path)))
        if deleted.rowcount == 0:
            raise _missing(path)

    def _check_size(self, content: bytes) -> None:
        if len(content) > self._max_file:
            raise UserStorageFull(f"a file may have {self._max_file} bytes at most")

    async def _check_room(
        self, connection: Transaction, shelf: UserdataScope, path: str, size: int
    ) -> None:
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(userdata.c.size), 0))
        others = query.where(_on(shelf), userdata.c.path != path)
        row: Any = (await connection.execute(others)).one()
        files, taken = row
        if files >= self._max_files or taken + size > self._max_bytes:
            raise UserStorageFull(
                f"there is room for {self._max_files} files and {self._max_bytes} bytes",
                details={"files": files, "bytes": int(taken)},
            )


async def _put(
    connection: Transaction, shelf: UserdataScope, path: str, content: bytes, *, known: bool
) -> UserFile:
    moment = now()
    values = {
        "content": content,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "modified_at": moment,
    }
    if known:
        await connection.execute(userdata.update().where(_at(shelf, path)).values(values))
    else:
        place = {"owner": shelf.owner, "user_id": shelf.user, "path": path, "created_at": moment}
        await connection.execute(userdata.insert().values(values | place))
    row = (await connection.execute(sa.select(*_SHOWN).where(_at(shelf, path)))).mappings()
    return _file(row.one())


async def _digest(connection: Transaction, shelf: UserdataScope, path: str) -> str | None:
    query = sa.select(userdata.c.sha256).where(_at(shelf, path)).with_for_update()
    found: str | None = (await connection.execute(query)).scalar()
    return found


def _on(shelf: UserdataScope) -> sa.ColumnElement[bool]:
    return sa.and_(userdata.c.owner == shelf.owner, userdata.c.user_id == shelf.user)


def _at(shelf: UserdataScope, path: str) -> sa.ColumnElement[bool]:
    return sa.and_(_on(shelf), userdata.c.path == path)


def _file(row: Mapping[Any, Any]) -> UserFile:
    return UserFile(
        path=row["path"],
        size=row["size"],
        created=aware(row["created_at"]) or now(),
        modified=aware(row["modified_at"]) or now(),
    )


def _missing(path: str) -> UserFileNotFound:
    return UserFileNotFound(f"there is no file {path!r}")
