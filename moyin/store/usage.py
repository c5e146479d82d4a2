"""Records the tokens and cost of text requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from moyin.store.schema import usage
from moyin.store.sql import Database, now

__all__ = ["UsageEntry", "UsageLedger"]

_log = logging.getLogger(__name__)
_CAPACITY = 10_000
# Small, since preparing a batch blocks the event loop.
_BATCH = 100
_FLUSH_SECONDS = 0.5
_RETRY_SECONDS = 2.0
# An entry that fails so often, without an outage, is dropped.
_MAX_FAILURES = 5
# Classes of SQLSTATE for invalid data.
_INVALID_DATA = ("22", "23")
_NANO = 10**9
# A row may be written again if the result of its first commit is unknown.
_INSERT = {
    "sqlite": sqlite.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
}


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class UsageEntry:
    """Describes the usage of one request.

    Attributes:
        cached_tokens: the part of ``input_tokens`` that was read from a prompt cache.
        complete: False if the response was cut off; the counts are then those up to the cut.
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


class UsageLedger:
    """Queues entries without waiting and writes them in batches.

    If the database is slow or unavailable, up to 10,000 entries wait in memory. Entries beyond that,
    and those that the database rejects, are logged instead, so that they can be booked by hand.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[UsageEntry] = deque()
        # Rows of the first entries once their batch was tried. They keep their ids, since the
        # commit may have succeeded although its reply was lost.
        self._attempted_rows: list[dict[str, Any]] = []
        # The number of first entries to write one by one, since one of their batch is invalid.
        self._one_by_one = 0
        # The number of times that the first entry has failed.
        self._failures = 0
        self._done_count = 0  # entries written or dropped
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start writing in the background."""
        self._writer = asyncio.create_task(self._write_until_closed())

    async def close(self) -> None:
        """Write waiting entries and stop; log those that cannot be written. Raises nothing."""
        self._closing.set()
        try:
            if self._writer is not None:
                await self._writer
        except Exception:
            _log.exception("the usage ledger's writer failed unexpectedly")
        finally:
            for entry in self._waiting:
                _log.error(
                    "the usage ledger is closed and the database unavailable; entry not booked: %s",
                    entry,
                )

    def record(self, entry: UsageEntry) -> None:
        """Queue an entry; log it if the queue is full."""
        if len(self._waiting) >= _CAPACITY:
            _log.error("the usage ledger is full; entry not booked: %s", entry)
        else:
            self._waiting.append(entry)

    async def get(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None:
        """Return the owner's newest written entry of a request; of a hedged one, the complete one.

        Args:
            since: only entries since this time; None: of any age.
        """
        query = (
            sa.select(usage)
            .where(usage.c.request_id == request_id, usage.c.owner == owner)
            .order_by(usage.c.complete.desc(), usage.c.created_at.desc())
            .limit(1)
        )
        if since is not None:
            query = query.where(usage.c.created_at >= since)
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        return None if row is None else _entry(row)

    async def find(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None:
        """Return what `get` does, including entries that wait to be written."""
        candidates = [
            entry
            for entry in reversed(self._waiting)
            if entry.request_id == request_id and entry.owner == owner
        ]
        if (written := await self.get(owner, request_id, since)) is not None:
            candidates.append(written)
        return max(candidates, key=lambda entry: entry.complete, default=None)

    async def _write_until_closed(self) -> None:
        pause = _FLUSH_SECONDS
        closed = False
        while not closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            closed = self._closing.is_set()
            pause = _FLUSH_SECONDS if await self._write_waiting() else _RETRY_SECONDS

    async def _write_waiting(self) -> bool:
        """Write the entries that wait now, one batch per commit; False: retry later.

        Entries that arrive meanwhile wait for the next call: if they arrive as fast as commits are
        made, each would otherwise have its own commit.
        """
        end = self._done_count + len(self._waiting)
        while self._waiting and (self._done_count < end or self._closing.is_set()):
            size = 1 if self._one_by_one else _BATCH
            try:
                if not self._attempted_rows:
                    written_at = now()
                    self._attempted_rows = [
                        _row(e, written_at) for e in islice(self._waiting, size)
                    ]
                rows = self._attempted_rows[:size]
                async with self._database.writing() as connection:
                    await connection.run_sync(partial(_insert, rows))
            except Exception as error:
                if _is_outage(error):
                    waiting = len(self._waiting)
                    _log.exception("usage ledger: %d entries wait for the database", waiting)
                    return False
                if not self._one_by_one:
                    self._one_by_one = min(size, len(self._waiting))
                elif not self._drop_failing():
                    return False
            else:
                self._remove_first(len(rows))
        return True

    def _drop_failing(self) -> bool:
        """Drop the first entry if it has failed too often; False: it is to be retried."""
        self._failures += 1
        if self._failures < _MAX_FAILURES and not self._closing.is_set():
            _log.exception("usage ledger: writing an entry failed and is retried")
            return False
        _log.exception("usage ledger: an entry cannot be written; not booked: %s", self._waiting[0])
        self._remove_first(1)
        return True

    def _remove_first(self, count: int) -> None:
        """Remove the first ``count`` entries from the queue."""
        del self._attempted_rows[:count]
        for _ in range(count):
            self._waiting.popleft()
        self._done_count += count
        self._one_by_one, self._failures = max(0, self._one_by_one - count), 0


def _is_outage(error: Exception) -> bool:
    """Return whether the database is unavailable, as opposed to an invalid entry."""
    # A refused or unanswered connection raises the driver's OSError.
    if not isinstance(error, SQLAlchemyError | OSError):
        return False
    # PostgreSQL's driver has no exception class for invalid data.
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return not (isinstance(error, IntegrityError) or str(state).startswith(_INVALID_DATA))


def _insert(rows: list[dict[str, Any]], connection: sa.Connection) -> None:
    connection.execute(_INSERT[connection.dialect.name], rows)


def _row(entry: UsageEntry, written_at: datetime) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(16),
        "request_id": entry.request_id,
        "owner": entry.owner,
        "backend": entry.backend,
        "model": entry.model,
        "input_tokens": entry.input_tokens,
        "cached_tokens": entry.cached_tokens,
        "output_tokens": entry.output_tokens,
        "cost_nano_usd": int((entry.cost_usd * _NANO).to_integral_value()),
        "complete": entry.complete,
        "created_at": written_at,
    }


def _entry(row: Mapping[Any, Any]) -> UsageEntry:
    return UsageEntry(
        request_id=row["request_id"],
        owner=row["owner"],
        backend=row["backend"],
        model=row["model"],
        input_tokens=row["input_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        cost_usd=Decimal(row["cost_nano_usd"]) / _NANO,
        complete=row["complete"],
    )
