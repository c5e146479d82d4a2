"""Records the tokens and the cost of text requests in SQL."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from moyin.store.schema import usage
from moyin.store.sql import Database, ensure_utc, now

_log = logging.getLogger(__name__)
_CAPACITY = 10_000
# Few rows, since preparing a batch blocks the event loop.
_BATCH = 100
_FLUSH_SECONDS = 0.5
_RETRY_SECONDS = 2.0
# After so many failures that are no outage, an entry is dropped.
_MAX_FAILURES = 5
# The SQLSTATE classes "data exception" and "integrity constraint violation".
_INVALID_DATA = ("22", "23")
_NANO = 10**9
# A row may be written twice if the result of the first commit was lost.
_INSERT = {
    "sqlite": sqlite.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
}


# The error code of calls that the client or the gateway ended, such as the slower call of a hedge.
CANCELLED = "cancelled"


class CallStatus(StrEnum):
    """The outcome of a call; an ``incomplete`` call ended early for an unrecorded reason."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


# Not frozen, since one is created per request and freezing doubles the cost.
@dataclass(kw_only=True, slots=True)
class UsageEntry:
    """Describes the tokens and the cost of one call to a back end for a request.

    Attributes:
        cached_tokens: the part of ``input_tokens`` that was read from a prompt cache.
        complete: True if the response was complete; if not, the counts cover the part that was
            received.
        key_id: id of the caller's API key; None if it is unknown.
        requested_model: the model or alias that the request named.
        error: code of the error that ended the call early.
        operation: kind of the call; None for chats and embeddings.
        unit: unit in which calls of this kind are counted; None if only tokens are.
        quantity: number of units.
        load_milliseconds: for a render, the part of ``quantity`` in which models were loaded.
        created_at: the time when the entry was written; None before.
    """

    request_id: str
    owner: str
    backend: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: Decimal
    complete: bool
    key_id: str | None = None
    requested_model: str | None = None
    error: str | None = None
    operation: str | None = None
    unit: str | None = None
    quantity: int | None = None
    load_milliseconds: int | None = None
    created_at: datetime | None = field(default=None, compare=False)

    @property
    def status(self) -> CallStatus:
        if self.complete:
            return CallStatus.COMPLETE
        if self.error is None:
            return CallStatus.INCOMPLETE
        return CallStatus.CANCELLED if self.error == CANCELLED else CallStatus.FAILED


_PLAIN_COLUMNS = tuple(
    name for name in UsageEntry.__slots__ if name not in ("cost_usd", "created_at")
)


class UsageLedger:
    """Queues usage entries without blocking, and writes them to the database in batches.

    While the database is slow or unavailable, up to 10,000 entries wait in memory. Further entries,
    and entries that the database rejects, are written to the log, from which an operator can book
    them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[UsageEntry] = deque()
        # Rows that were tried; they keep their ids, since the commit may have succeeded.
        self._attempted_rows: list[dict[str, Any]] = []
        # The number of first entries to write one by one, since one of them is invalid.
        self._one_by_one = 0
        # The number of times that the first entry has failed.
        self._failures = 0
        self._done_count = 0  # entries written or dropped
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that writes entries."""
        self._writer = asyncio.create_task(self._write_until_closed())

    async def close(self) -> None:
        """Write the waiting entries and stop the task; log entries that cannot be written."""
        self._closing.set()
        try:
            if self._writer is not None:
                await self._writer
        except Exception:
            _log.exception("the task that writes usage entries failed unexpectedly")
        finally:
            for entry in self._waiting:
                _log.error(
                    "the database is unavailable at shutdown; usage entry not written: %s",
                    entry,
                )

    def record(self, entry: UsageEntry) -> None:
        """Queue an entry, or log it if the queue is full."""
        if len(self._waiting) >= _CAPACITY:
            _log.error(
                "%d usage entries are waiting; usage entry not written: %s", _CAPACITY, entry
            )
        else:
            self._waiting.append(entry)

    async def get(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None:
        """Return the ledger entry of a request, or None if there is none since ``since``.

        If there are several, the newest entry with a complete response is returned, or else the
        newest entry.
        """
        query = (
            sa.select(usage)
            .where(usage.c.request_id == request_id, usage.c.owner == owner)
            .order_by(usage.c.complete.desc(), usage.c.created_at.desc())
            .limit(1)
        )
        if since is not None:
            query = query.where(usage.c.created_at >= since)
        row = await self._database.fetch_first(query)
        return None if row is None else parse_entry(row)

    async def find(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None:
        """Return the ledger entry of a request as `get` does, even if it still waits in memory."""
        entries = [
            entry
            for entry in reversed(self._waiting)
            if entry.request_id == request_id and entry.owner == owner
        ]
        if (written_entry := await self.get(owner, request_id, since)) is not None:
            entries.append(written_entry)
        return max(entries, key=lambda entry: entry.complete, default=None)

    async def _write_until_closed(self) -> None:
        pause = _FLUSH_SECONDS
        is_closing = False
        while not is_closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            is_closing = self._closing.is_set()
            pause = _FLUSH_SECONDS if await self._write_waiting_entries() else _RETRY_SECONDS

    async def _write_waiting_entries(self) -> bool:
        """Write the waiting entries in batches; return False to retry later.

        Entries that arrive meanwhile wait for the next call; otherwise each might need its own
        commit.
        """
        end_count = self._done_count + len(self._waiting)
        while self._waiting and (self._done_count < end_count or self._closing.is_set()):
            batch_size = 1 if self._one_by_one else _BATCH
            try:
                if not self._attempted_rows:
                    written_at = now()
                    self._attempted_rows = [
                        build_usage_row(e, written_at) for e in islice(self._waiting, batch_size)
                    ]
                rows = self._attempted_rows[:batch_size]
                async with self._database.writing() as connection:
                    await connection.run_sync(partial(insert_usage_rows, rows))
            except Exception as error:
                if is_outage(error):
                    waiting_count = len(self._waiting)
                    _log.exception(
                        "%d usage entries wait until the database is available", waiting_count
                    )
                    return False
                if not self._one_by_one:
                    self._one_by_one = min(batch_size, len(self._waiting))
                elif not self._drop_failing_entry():
                    return False
            else:
                self._remove_first_entries(len(rows))
        return True

    def _drop_failing_entry(self) -> bool:
        """Drop the first entry, whose writing failed, or return False to try it again.

        It is dropped after `_MAX_FAILURES` failures, and after one while the ledger closes.
        """
        self._failures += 1
        if self._failures < _MAX_FAILURES and not self._closing.is_set():
            _log.exception("writing a usage entry failed; retrying")
            return False
        _log.exception("a row is invalid; usage entry not written: %s", self._waiting[0])
        self._remove_first_entries(1)
        return True

    def _remove_first_entries(self, count: int) -> None:
        """Remove the first ``count`` entries, which were written or dropped, from the queue."""
        del self._attempted_rows[:count]
        for _ in range(count):
            self._waiting.popleft()
        self._done_count += count
        self._one_by_one, self._failures = max(0, self._one_by_one - count), 0


def is_outage(error: Exception) -> bool:
    """Return True if an error means that the database is unavailable, False if a row is invalid."""
    # A refused or unanswered connection raises the driver's OSError.
    if not isinstance(error, SQLAlchemyError | OSError):
        return False
    # SQLAlchemy has no class of its own for PostgreSQL's errors about invalid data.
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    return not (isinstance(error, IntegrityError) or str(sqlstate).startswith(_INVALID_DATA))


def insert_usage_rows(rows: list[dict[str, Any]], connection: sa.Connection) -> None:
    """Insert rows that `build_usage_row` returned; skip rows whose id exists already."""
    connection.execute(_INSERT[connection.dialect.name], rows)


def build_usage_row(
    entry: UsageEntry, written_at: datetime, row_id: str | None = None
) -> dict[str, Any]:
    """Return the row of an entry, with a random id of 32 characters unless ``row_id`` is given."""
    return {
        "id": row_id or secrets.token_hex(16),
        "cost_nano_usd": int((entry.cost_usd * _NANO).to_integral_value()),
        "created_at": written_at,
        **{name: getattr(entry, name) for name in _PLAIN_COLUMNS},
    }


def parse_entry(row: Mapping[Any, Any]) -> UsageEntry:
    """Return the usage entry that a row of the table describes."""
    values = {name: row[name] for name in _PLAIN_COLUMNS}
    return UsageEntry(
        cost_usd=nano_to_usd(row["cost_nano_usd"]),
        created_at=ensure_utc(row["created_at"]),
        **values,
    )


def nano_to_usd(nano_usd: int) -> Decimal:
    """Convert billionths of a US dollar to US dollars."""
    return Decimal(nano_usd) / _NANO
