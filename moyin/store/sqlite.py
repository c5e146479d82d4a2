"""Runs whole SQLite transactions in threads, so that they do not block the event loop.

Async drivers switch to a thread and back for each cursor, row and commit, which takes ten times as
long as the statements themselves.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.engine import make_url

T = TypeVar("T")
# The longest time that a writer waits for a writer in another process.
BUSY_SECONDS = 30
_THREADS = 4
# Concurrent read transactions of several calls; fewer than the 15 connections of SQLAlchemy's pool.
_MAX_OPEN = 8


class SqliteDatabase:
    """Owns the connections and threads of one process for a SQLite file or in-memory database."""

    def __init__(self, url: str) -> None:
        self.engine = _create_engine(url)
        self._writer = self.engine.execution_options(writes=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="sqlite")
        # Without this lock, writers that wait for SQLite's only writer would occupy all threads.
        self._write_lock = asyncio.Lock()
        self._read_slots = asyncio.Semaphore(_MAX_OPEN)

    async def run(self, work: Callable[[sa.Connection], T], *, writes: bool) -> T:
        """Run ``work`` in a thread, in a transaction of its own, and return its result."""
        if not writes:
            return await self.run_in_thread(lambda: _run_connected(self.engine.connect, work))
        async with self._write_lock:
            return await self.run_in_thread(lambda: _run_connected(self._writer.begin, work))

    @asynccontextmanager
    async def transaction(self, *, writes: bool) -> AsyncIterator[SqliteTransaction]:
        """Open a transaction whose statements run in threads; commit it unless the block raises."""
        engine = self._writer if writes else self.engine
        async with self._write_lock if writes else self._read_slots:
            transaction = SqliteTransaction(self, engine)
            try:
                yield transaction
            except BaseException:
                await transaction.end(commit=False)
                raise
            await transaction.end(commit=writes)

    async def run_in_thread(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread and return its result; if cancelled, let ``call`` end first."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        cancellation: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancellation = error
        if cancellation is not None:
            # Marks the exception as retrieved, since no caller is left to receive it.
            future.exception()
            raise cancellation
        return future.result()

    async def close(self) -> None:
        """Close the connections and end the threads."""
        await self.run_in_thread(self.engine.dispose)
        self._threads.shutdown(wait=False)


class SqliteTransaction:
    """Implements `moyin.store.sql.Transaction`; the first statement begins the transaction."""

    def __init__(self, database: SqliteDatabase, engine: sa.Engine) -> None:
        self._database = database
        self._engine = engine
        self._connection: sa.Connection | None = None

    async def execute(
        self, statement: sa.Executable, parameters: Any = None
    ) -> sa.CursorResult[Any]:
        return await self.run_sync(lambda connection: connection.execute(statement, parameters))

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._database.run_in_thread(lambda: work(self._connect()))

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back the transaction."""
        if self._connection is not None:
            await self._database.run_in_thread(lambda: self._end(commit))

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _end(self, commit: bool) -> None:
        assert self._connection is not None
        with self._connection as connection:
            if commit:
                connection.commit()


class _Cursor(sqlite3.Cursor):
    """Reads all rows when a statement is executed, so that fetching them does not block."""

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


def _run_connected(
    connect: Callable[[], AbstractContextManager[sa.Connection]], work: Callable[[sa.Connection], T]
) -> T:
    with connect() as connection:
        return work(connection)


def enable_wal(file: Path) -> None:
    """Set a database file to write-ahead logging, so that readers and the writer run concurrently.

    This blocks, and must happen before other processes open the file, or SQLite may refuse.
    """
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def dump_json(value: Any) -> str:
    """Return ``value`` as JSON for a column, in a fifth of the time that `json.dumps` takes."""
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:
        # The value contains a lone surrogate, which `to_json` refuses and JSON can escape.
        return json.dumps(value)


def _create_engine(url: str) -> sa.Engine:
    engine = sa.create_engine(
        make_url(url).set(drivername="sqlite+pysqlite"),
        json_serializer=dump_json,
        connect_args={"timeout": BUSY_SECONDS, "factory": _Connection, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def _configure_connection(connection: Any, _record: Any) -> None:
        # Disables the driver's own transactions, since `_begin_transaction` begins them.
        connection.isolation_level = None
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("delete",):
            cursor.execute("PRAGMA journal_mode=WAL")
        # NORMAL saves a disk sync per commit, and with WAL a crash of the process still loses nothing.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin_transaction(connection: sa.Connection) -> None:
        # IMMEDIATE, since a write after a read would fail if another transaction wrote in between.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
