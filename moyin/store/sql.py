"""Connects to the SQL database and migrates it.

SQLite is the embedded default, PostgreSQL the shared database. Code above this module is the same
for both.
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
from moyin.store.sqlite import BUSY_SECONDS, SqliteDatabase, enable_wal

__all__ = ["Database", "Transaction", "ensure_utc", "migrate", "now"]

T = TypeVar("T")
_MIGRATIONS = Path(__file__).parent / "migrations"


class Transaction(Protocol):
    """Executes statements in one transaction. Results have already read all their rows."""

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]:
        """Execute one statement."""

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """Run several statements without returning to the event loop in between."""


class Database:
    """Owns the connection pool of one process.

    `read` and `write` are the fast way: one function runs the whole transaction outside of the event
    loop and returns plain values. `reading` and `writing` are for transactions that await something
    between two statements, or that are rare.
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
        """Return the result of ``work``, which only queries."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=False)
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of ``work``, which may write; commit unless it raises."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=True)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction that only queries."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=False)
        return _shared(self._engine.connect())

    def writing(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction that may write; commit unless the block raises."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=True)
        return _shared(self._engine.begin())

    def within(self, transaction: Transaction | None) -> AbstractAsyncContextManager[Transaction]:
        """Join ``transaction``, which its owner ends; None: open a new one, as `writing` does."""
        return self.writing() if transaction is None else nullcontext(transaction)

    @asynccontextmanager
    async def advisory_lock(self, name: str) -> AsyncIterator[bool]:
        """Try to take a lock by name; yield whether it was taken.

        The lock excludes other processes, too. It is released with the block or the process.
        """
        if self._shared is not None:
            query = sa.select(sa.func.pg_try_advisory_xact_lock(zlib.crc32(name.encode())))
            async with self._shared.connect() as connection:
                yield bool((await connection.execute(query)).scalar_one())
        elif (file := _file(self._url)) is not None:
            with file.with_suffix(f".{name}.lock").open("w") as lock:
                yield _try_lock(lock)
        else:
            yield True

    async def ready(self) -> None:
        """Migrate an embedded SQLite file to the newest schema.

        An operator migrates a shared database (``moyin migrate``); replicas never do.

        Raises:
            StackError: an unknown version of Moyin made the file.
        """
        if self._sqlite is not None and not await asyncio.to_thread(_is_newest, self._url):
            await asyncio.to_thread(migrate, self._url)

    async def ping(self) -> None:
        """Raise the driver's error if the database is unavailable."""
        await self.read(lambda connection: connection.execute(sa.text("SELECT 1")).all())

    async def close(self) -> None:
        """Close all connections."""
        if self._sqlite is not None:
            await self._sqlite.close()
        else:
            await self._engine.dispose()

    @property
    def _engine(self) -> AsyncEngine:
        assert self._shared is not None
        return self._shared


class _SharedTransaction:
    """Implements `Transaction` on PostgreSQL."""

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
    connecting: AbstractAsyncContextManager[AsyncConnection],
) -> AsyncIterator[Transaction]:
    async with connecting as connection:
        yield _SharedTransaction(connection)


def migrate(url: str, revision: str = "head", *, down: bool = False) -> None:
    """Run the Alembic migrations up, or ``down``, to ``revision``; blocks.

    A lock makes processes that start together migrate one after the other.

    Raises:
        StackError: the database is at a revision that this version does not know.
    """
    # Imported here, since every process uses a database and few migrate it.
    import alembic.command
    import alembic.config

    with _migration_lock(_file(url)):
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["url"] = url
        run = alembic.command.downgrade if down else alembic.command.upgrade
        run(config, revision)
        if (file := _file(url)) is not None:
            enable_wal(file)


def newest_revision() -> str:
    """Return the revision of the newest migration, with whose number its file name begins."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _is_newest(url: str) -> bool:
    file = _file(url)
    if file is None or not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        try:
            revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
        except sqlite3.OperationalError:  # no such table: a new file
            return False
    # A file restored from a backup may not be in WAL mode.
    return revisions == [(newest_revision(),)] and mode == "wal"


def _file(url: str) -> Path | None:
    """Return the file of an SQLite database; None: another database, or one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def now() -> datetime:
    """Return the present time in UTC, with its time zone."""
    return datetime.now(UTC)


def ensure_utc(value: datetime | None) -> datetime | None:
    """Return ``value`` with the time zone UTC, which SQLite does not store."""
    if value is None or value.tzinfo is not None:
        return value
    return value.replace(tzinfo=UTC)


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _migration_lock(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
