"""SQLite without an event loop waiting for it: whole transactions in threads.

Drivers that answer each call to an event loop cross to a thread and back for every cursor, row and
commit; that is ten times what our statements themselves take.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from moyin.store.json import json_text

__all__ = ["BUSY_SECONDS", "SqliteDatabase", "SqliteTransaction", "keep_a_log"]

T = TypeVar("T")
# How long a writer waits for one of another process: far more than any of our transactions takes.
BUSY_SECONDS = 30
_THREADS = 4
# Transactions that wait for their owner between two statements; SQLAlchemy's pool has room for 15.
_OPEN = 8


class SqliteDatabase:
    """One file, or one in memory, for one process."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writer = self.engine.execution_options(writes=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="sqlite")
        # SQLite has one writer. Ours take turns here: there they would poll for it, in threads that
        # whoever holds the turn may need.
        self._turn = asyncio.Lock()
        self._open = asyncio.Semaphore(_OPEN)

    async def run(self, work: Callable[[sa.Connection], T], *, writes: bool) -> T:
        """``work`` in a transaction of its own, in one go."""
        if not writes:
            return await self.visit(lambda: _read(self.engine, work))
        async with self._turn:
            return await self.visit(lambda: _write(self._writer, work))

    @asynccontextmanager
    async def transaction(self, *, writes: bool) -> AsyncIterator[SqliteTransaction]:
        """A transaction of several visits; commits when the block ends well."""
        engine = self._writer if writes else self.engine
        async with self._turn if writes else self._open:
            opened = SqliteTransaction(self, engine)
            try:
                yield opened
            except BaseException:
                await opened.end(commit=False)
                raise
            await opened.end(commit=writes)

    async def visit(self, call: Callable[[], T]) -> T:
        """``call`` in a thread. It is never left behind: a cancellation waits for its end."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            # Retrieved, whatever it is: nobody is there to hear of it.
            future.exception()
            raise cancelled
        return future.result()

    async def close(self) -> None:
        await self.visit(self.engine.dispose)
        self._threads.shutdown(wait=False)


class SqliteTransaction:
    """Begins with its first statement. See `moyin.store.sql.Transaction`."""

    def __init__(self, database: SqliteDatabase, engine: sa.Engine) -> None:
        self._database = database
        self._engine = engine
        self._connection: sa.Connection | None = None

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]:
        return await self.run_sync(lambda connection: connection.execute(statement, parameters))

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._database.visit(lambda: work(self._begun()))

    async def end(self, *, commit: bool) -> None:
        if self._connection is not None:
            await self._database.visit(lambda: self._end(commit))

    def _begun(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _end(self, commit: bool) -> None:
        assert self._connection is not None
        with self._connection as connection:
            if commit:
                connection.commit()


class _Cursor(sqlite3.Cursor):
    """Has all its rows when it has executed: reading them, in the event loop, asks no file."""

    _rows: deque[Any]

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        super().execute(sql, parameters)
        self._rows = deque(() if self.description is None else super().fetchall())
        return self

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        return [self._rows.popleft() for _ in range(min(size or 1, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        rows = list(self._rows)
        self._rows.clear()
        return rows


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


def _read(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    with engine.connect() as connection:
        return work(connection)


def _write(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def keep_a_log(file: Path) -> None:
    """Have the file written by way of a log (WAL) from now on, so that readers and the writer don't
    wait for each other; blocks. For who has it alone: while others open it, SQLite may refuse.
    """
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(
        make_url(url).set(drivername="sqlite+pysqlite"),
        json_serializer=json_text,
        connect_args={
            "timeout": BUSY_SECONDS,
            "factory": _Connection,
            "check_same_thread": False,
        },
    )

    @sa.event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: Any) -> None:
        # Off: the driver's own idea of when a transaction begins; `_begin` below decides.
        connection.isolation_level = None
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("delete",):
            cursor.execute("PRAGMA journal_mode=WAL")
        # With WAL a crash of the process loses nothing; NORMAL skips a disk sync per commit.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later would fail at once, without waiting,
        # when another writer came in between: so writers queue up at the start.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
