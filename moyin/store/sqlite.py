"""Runs whole SQLite transactions in threads, so that they do not block the event loop.

Async drivers switch to a thread and back for each cursor, row and commit, which takes ten times as
long as our statements.
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

__all__ = ["BUSY_SECONDS", "SqliteDatabase", "SqliteTransaction", "enable_wal"]

T = TypeVar("T")
# How long a writer waits for one of another process; far longer than any transaction takes.
BUSY_SECONDS = 30
_THREADS = 4
# Open read transactions that await something; SQLAlchemy's pool has 15 connections.
_MAX_OPEN = 8


class SqliteDatabase:
    """Owns the connections of one process to a database file, or to one in memory."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writer = self.engine.execution_options(writes=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="sqlite")
        # SQLite has one writer. Without this lock, waiting writers would poll for it and occupy the
        # threads that the present writer needs.
        self._write_lock = asyncio.Lock()
        self._read_slots = asyncio.Semaphore(_MAX_OPEN)

    async def run(self, work: Callable[[sa.Connection], T], *, writes: bool) -> T:
        """Run ``work`` in its own transaction, in one call to a thread."""
        if not writes:
            return await self.run_in_thread(lambda: _read(self.engine, work))
        async with self._write_lock:
            return await self.run_in_thread(lambda: _write(self._writer, work))

    @asynccontextmanager
    async def transaction(self, *, writes: bool) -> AsyncIterator[SqliteTransaction]:
        """Open a transaction of several calls to threads; commit unless the block raises."""
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
        """Run ``call`` in a thread; a cancellation waits until it ends."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            # Marks the exception as retrieved, since no caller is left to receive it.
            future.exception()
            raise cancelled
        return future.result()

    async def close(self) -> None:
        """Close the connections and end the threads."""
        await self.run_in_thread(self.engine.dispose)
        self._threads.shutdown(wait=False)


class SqliteTransaction:
    """Implements `moyin.store.sql.Transaction`; begins with its first statement."""

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
        """Commit or roll back."""
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
    """Reads all rows on execution, so that fetching them in the event loop reads no file."""

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


def enable_wal(file: Path) -> None:
    """Set the file to write-ahead logging, so that readers and the writer do not wait; blocks.

    Call it before other processes open the file, or SQLite may refuse.
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
        # Turns off the driver's own transactions; `_begin` below begins them.
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
        # A transaction that reads first and then writes fails at once if another writer came in
        # between. So transactions that write wait for the write lock at their start.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
