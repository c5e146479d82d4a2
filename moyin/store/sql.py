"""The SQL database: one engine per process, and its migrations.

SQLite is the embedded default and PostgreSQL the shared one; nothing above this module can tell.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

__all__ = ["Database", "aware", "migrate", "now"]

_MIGRATIONS = Path(__file__).parent / "migrations"
# How long a writer waits for another one: far more than any of our transactions takes.
_BUSY_SECONDS = 30


class Database:
    """Owns the connection pool of one process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        if self._sqlite:
            self.engine = _sqlite_engine(url)
        else:
            self.engine = create_async_engine(url, pool_pre_ping=True)
        self._writer = self.engine.execution_options(writes=True)

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for queries."""
        return self.engine.connect()

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection in a transaction that may write; commits when the block ends well."""
        return self._writer.begin()

    async def ready(self) -> None:
        """Bring an embedded SQLite file up to the newest schema.

        A shared database is migrated by an operator (``moyin migrate``), never by a replica.
        """
        if self._sqlite and not await asyncio.to_thread(_is_newest, self._url):
            await asyncio.to_thread(migrate, self._url)

    async def ping(self) -> None:
        """Raise what the driver raises when the database does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


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


def newest_revision() -> str:
    """The schema that this code works with; migrations are named by their revision."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _is_newest(url: str) -> bool:
    file = _file(url)
    if file is None or not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.OperationalError:  # no such table: a new file
            return False
    return found == [(newest_revision(),)]


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


def _sqlite_engine(url: str) -> AsyncEngine:
    if (file := _file(url)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _tune(connection: Any, _record: Any) -> None:
        # Off: the driver's own idea of when a transaction begins; `_begin` below decides.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # With WAL a crash of the process loses nothing; NORMAL skips a disk sync per commit.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later would fail at once, without waiting,
        # when another writer came in between: so writers queue up at the start.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _turn(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
