"""Connects to the SQL database, runs transactions and migrates the schema.

The database is SQLite, which is embedded and the default, or PostgreSQL. Other modules use the same
code for both.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from moyin.errors import StackError
from moyin.store.sqlite import BUSY_SECONDS, SqliteDatabase, dump_json, enable_wal

T = TypeVar("T")
_Time = TypeVar("_Time", datetime, datetime | None)
_MIGRATIONS = Path(__file__).parent / "migrations"


class Transaction(Protocol):
    """Executes statements in one transaction; all rows of a result are read at once."""

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]:
        """Execute one statement."""

    async def run_sync(self, work: Callable[[sa.Connection], T], /) -> T:
        """Return the result of ``work``, which runs in the transaction without awaiting."""


class Database:
    """Owns the SQL connections of one process.

    `read`, `write` and the ``fetch`` methods are fast: they run a whole transaction outside of the
    event loop. Use `reading` and `writing` only for rare transactions, or to await something
    between statements.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._sqlite: SqliteDatabase | None = None
        self._shared: AsyncEngine | None = None
        if make_url(url).get_backend_name() == "sqlite":
            if (file := _get_file(url)) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._sqlite = SqliteDatabase(url)
        else:
            self._shared = create_async_engine(url, pool_pre_ping=True, json_serializer=dump_json)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work``, which only queries, in its own transaction, and return its result."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=False)
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in its own transaction, committed unless it raises; return its result."""
        if self._sqlite is not None:
            return await self._sqlite.run(work, writes=True)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def fetch_all(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        """Return all rows of a query."""
        return await self.read(lambda c: c.execute(query).mappings().all())

    async def fetch_first(self, query: sa.Select[Any]) -> sa.RowMapping | None:
        """Return the first row of a query, or None if it has no rows."""
        return await self.read(lambda c: c.execute(query).mappings().first())

    async def fetch_value(self, query: sa.Select[Any]) -> Any:
        """Return the first column of the first row of a query, or None if it has no rows."""
        return await self.read(lambda c: c.execute(query).scalar())

    async def fetch_values(self, query: sa.Select[Any]) -> Sequence[Any]:
        """Return the first column of all rows of a query."""
        return await self.read(lambda c: c.execute(query).scalars().all())

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction for queries."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=False)
        return self._engine.connect()

    def writing(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction for queries and changes; commit it unless the block raises."""
        if self._sqlite is not None:
            return self._sqlite.transaction(writes=True)
        return self._engine.begin()

    def join_or_begin(
        self, transaction: Transaction | None
    ) -> AbstractAsyncContextManager[Transaction]:
        """Return ``transaction``, which the caller must commit, or open a new one if it is None."""
        return self.writing() if transaction is None else nullcontext(transaction)

    async def execute(
        self, statement: sa.Executable, *, transaction: Transaction | None = None
    ) -> int:
        """Execute a statement in ``transaction``, or in a new one if that is None.

        Returns:
            The number of changed rows.
        """
        async with self.join_or_begin(transaction) as connection:
            return (await connection.execute(statement)).rowcount

    @asynccontextmanager
    async def advisory_lock(self, name: str) -> AsyncIterator[bool]:
        """Try to acquire a lock that one process at a time can hold; yield True on success."""
        if self._shared is not None:
            query = sa.select(sa.func.pg_try_advisory_xact_lock(zlib.crc32(name.encode())))
            async with self._shared.connect() as connection:
                yield bool((await connection.execute(query)).scalar_one())
        elif (file := _get_file(self._url)) is not None:
            with file.with_suffix(f".{name}.lock").open("w") as lock_file:
                yield _try_lock(lock_file)
        else:
            yield True

    async def ensure_schema(self) -> None:
        """Migrate the database to the newest schema if it is an embedded SQLite file.

        Operators migrate PostgreSQL with ``moyin migrate``. A schema revision that this version
        does not know raises `StackError`.
        """
        if self._sqlite is not None and not await asyncio.to_thread(_is_migrated, self._url):
            await asyncio.to_thread(migrate, self._url)

    async def ping(self) -> None:
        """Check that the database responds; raise the driver's error if it does not."""
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


def migrate(url: str, revision: str = "head", *, down: bool = False) -> None:
    """Upgrade, or with ``down`` downgrade, the database to ``revision``; this blocks.

    Processes that start at the same time migrate one after the other.

    Raises:
        StackError: this version does not know the present revision or ``revision``.
    """
    # Imported here, since every process uses the database and few migrate it.
    import alembic.command
    import alembic.config
    import alembic.util

    with _migration_lock(_get_file(url)):
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["url"] = url
        migrate_command = alembic.command.downgrade if down else alembic.command.upgrade
        try:
            migrate_command(config, revision)
        except alembic.util.CommandError as error:
            direction = "down" if down else "up"
            raise StackError(
                f"cannot migrate {direction} to {revision!r}: {error}; name a revision of this "
                "version, or use the version of Moyin that last migrated the database"
            ) from error
        if (file := _get_file(url)) is not None:
            enable_wal(file)


def get_newest_revision() -> str:
    """Return the revision of the newest migration: the first four characters of its file name."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


async def read_revision(url: str) -> str | None:
    """Return the revision of a database's schema, without changing the database.

    The result is None if no revision is recorded, or if the SQLite file does not exist. If the
    database cannot be read, the driver's error is raised.
    """
    file = _get_file(url)
    if file is not None and not file.exists():
        return None

    def read(connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    database = Database(url)
    try:
        return await database.read(read)
    finally:
        await database.close()


async def has_tables(url: str) -> bool:
    """Return whether the database has any tables, including those of other programs.

    If the database cannot be read, the driver's error is raised.
    """
    file = _get_file(url)
    if file is not None and not file.exists():
        return False
    database = Database(url)
    try:
        return await database.read(
            lambda connection: bool(sa.inspect(connection).get_table_names())
        )
    finally:
        await database.close()


def _is_migrated(url: str) -> bool:
    file = _get_file(url)
    if file is None or not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        try:
            revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            [(journal_mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
        except sqlite3.OperationalError:  # the table does not exist in a new file
            return False
    # A file restored from a backup may not be in WAL mode.
    return revisions == [(get_newest_revision(),)] and journal_mode == "wal"


def _get_file(url: str) -> Path | None:
    """Return the file of a SQLite database, or None for PostgreSQL and in-memory databases."""
    parsed_url = make_url(url)
    if parsed_url.get_backend_name() != "sqlite" or parsed_url.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed_url.database))


def now() -> datetime:
    """Return the current time with the time zone UTC."""
    return datetime.now(UTC)


def ensure_utc(moment: _Time) -> _Time:
    """Return a time from the database with the time zone UTC, which SQLite does not store."""
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


def _try_lock(lock_file: IO[str]) -> bool:
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _migration_lock(database_file: Path | None) -> Iterator[None]:
    if database_file is None:
        yield
        return
    database_file.parent.mkdir(parents=True, exist_ok=True)
    with database_file.with_suffix(".lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield
