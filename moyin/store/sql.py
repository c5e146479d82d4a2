"""The SQL database: one engine per process, and its migrations.

SQLite is the embedded default and PostgreSQL the shared one; nothing above this module can tell.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from moyin.store.json import json_text
from moyin.store.sqlite import BUSY_SECONDS, SqliteDatabase, keep_a_log

__all__ = ["Database", "Transaction", "aware", "migrate", "now"]

T = TypeVar("T")
_MIGRATIONS = Path(__file__).parent / "migrations"


class Transaction(Protocol):
    """What can be done in a transaction of several steps. Results hold their rows already."""

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]: ...

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """Several statements in one go."""
        ...


class Database:
    """Owns the connection pool of one process.

    `read` and `write` are the cheap way: all of a transaction in one function, which runs outside
    of the event loop and returns plain values. `reading` and `writing` are for transactions that
    wait for something else between two statements, or cost nobody anything.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._sqlite: SqliteDatabase | None = None
        self._shared: AsyncEngine | None = None
        if make_url(url).get_backend_name() == "sqlite":
            if (file := _file(url)) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._sqlite = SqliteDatabase(url)
        else:
            self._shared = create_async_engine(url, pool_pre_ping=True, json_serializer=json_text)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What ``work`` returns of a connection for queries."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=False)
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """The same in a transaction that may write; commits unless ``work`` raises."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=True)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """A connection for queries."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=False)
        return _shared(self._engine.connect())

    def writing(self) -> AbstractAsyncContextManager[Transaction]:
        """A connection in a transaction that may write; commits when the block ends well."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=True)
        return _shared(self._engine.begin())

    def within(self, transaction: Transaction | None) -> AbstractAsyncContextManager[Transaction]:
        """``transaction``, whose end is its owner's; None: one of its own."""
        return self.writing() if transaction is None else nullcontext(transaction)

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[bool]:
        """Whether nobody else, in any process, is in a block of this name. Who dies has left it."""
        if self._shared is not None:
            ask = sa.select(sa.func.pg_try_advisory_xact_lock(zlib.crc32(name.encode())))
            async with self._shared.connect() as connection:
                yield bool((await connection.execute(ask)).scalar_one())
        elif (file := _file(self._url)) is not None:
            with file.with_suffix(f".{name}.lock").open("w") as lock:
                yield _taken(lock)
        else:
            yield True

    async def ready(self) -> None:
        """Bring an embedded SQLite file up to the newest schema.

        A shared database is migrated by an operator (``moyin migrate``), never by a replica.
        """
        if self._sqlite is not None and not await asyncio.to_thread(_is_newest, self._url):
            await asyncio.to_thread(migrate, self._url)

    async def ping(self) -> None:
        """Raise what the driver raises when the database does not answer."""
        await self.read(lambda connection: connection.execute(sa.text("SELECT 1")).all())

    async def close(self) -> None:
        if self._sqlite is not None:
            await self._sqlite.close()
        else:
            await self._engine.dispose()

    @property
    def _engine(self) -> AsyncEngine:
        assert self._shared is not None
        return self._shared


class _SharedTransaction:
    """`Transaction` of a database that many processes share."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]:
        return await self._connection.execute(statement, parameters)

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._connection.run_sync(work)


@asynccontextmanager
async def _shared(
    opened: AbstractAsyncContextManager[AsyncConnection],
) -> AsyncIterator[Transaction]:
    async with opened as connection:
        yield _SharedTransaction(connection)


def migrate(url: str, revision: str = "head", *, down: bool = False) -> None:
    """Run the Alembic migrations up, or ``down``, to ``revision``; blocks.

    Processes that start together take turns, so that each finds the schema or makes it.
    """
    # Here, because every process has a database and hardly any has to migrate it.
    import alembic.command
    import alembic.config

    with _turn(_file(url)):
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["url"] = url
        run = alembic.command.downgrade if down else alembic.command.upgrade
        run(config, revision)
        if (file := _file(url)) is not None:
            keep_a_log(file)


def newest_revision() -> str:
    """The schema that this code works with; migrations are named by their revision."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _is_newest(url: str) -> bool:
    file = _file(url)
    if file is None or not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
        except sqlite3.OperationalError:  # no such table: a new file
            return False
    # A file that was restored from a copy may be written in SQLite's own way again.
    return found == [(newest_revision(),)] and mode == "wal"


def _file(url: str) -> Path | None:
    """Of an SQLite database; None for others, and for one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def now() -> datetime:
    """The present, in UTC and aware of it."""
    return datetime.now(UTC)


def aware(value: datetime | None) -> datetime | None:
    """``value`` in UTC; SQLite gives back naive datetimes."""
    if value is None or value.tzinfo is not None:
        return value
    return value.replace(tzinfo=UTC)


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _turn(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
