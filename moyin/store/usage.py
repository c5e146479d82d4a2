"""The ledger of text requests: who used which model, how many tokens, for how much."""

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
# Small, because preparing a batch holds up the event loop.
_BATCH = 100
_FLUSH_SECONDS = 0.5
_RETRY_SECONDS = 2.0
# So often one entry may fail in a way that is no outage; then the others are written without it.
_MOST_FAULTS = 5
# Classes of SQLSTATE: what was to be written is wrong, and not the database away.
_WRONG = ("22", "23")
_NANO = 10**9
# What is written again, because nobody knows whether it was, is no conflict.
_INSERT = {
    "sqlite": sqlite.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(usage).on_conflict_do_nothing(index_elements=["id"]),
}


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class UsageEntry:
    """One answered request.

    Attributes:
        cached_tokens: the part of ``input_tokens`` that was read from a prompt cache.
        complete: False when the answer was cut; the counts are then what was seen.
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
    """Takes entries on the hot path without waiting and writes them in batches.

    When the database can't keep up or is away, entries wait in memory, ``10 000`` at most; one
    that finds no room, or that the database can't take, is written to the log instead, so that it
    can be booked by hand.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[UsageEntry] = deque()
        # Of the first that wait, once they were tried: a commit whose answer is lost may have been
        # one, so they keep their ids.
        self._tried: list[dict[str, Any]] = []
        # So many of the first are written one by one, as something is wrong with one of them; and
        # how often the very first has failed by now.
        self._alone = self._faults = 0
        self._written = 0  # entries that are done with
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._writer = asyncio.create_task(self._write_until_closed())

    async def close(self) -> None:
        """Write what waits, then stop. What could not be written is in the log; raises nothing, so
        that what is closed after it is closed."""
        self._closing.set()
        try:
            if self._writer is not None:
                await self._writer
        except Exception:
            _log.exception("the usage ledger's writer has ended in an unforeseen way")
        finally:
            for entry in self._waiting:
                _log.error("usage ledger closed without the database; not booked: %s", entry)

    def record(self, entry: UsageEntry) -> None:
        if len(self._waiting) >= _CAPACITY:
            _log.error("usage ledger is full; not booked: %s", entry)
        else:
            self._waiting.append(entry)

    async def get(
        self, owner: str, request_id: str, since: datetime | None = None
    ) -> UsageEntry | None:
        """The newest entry of ``owner`` under this request id. A hedged call has several: then the
        one that was answered.

        Args:
            since: older ones are not looked at; None: any age.
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
        """Return what `get` does, also of entries that still wait to be written."""
        found = [
            entry
            for entry in reversed(self._waiting)
            if entry.request_id == request_id and entry.owner == owner
        ]
        if (written := await self.get(owner, request_id, since)) is not None:
            found.append(written)
        return max(found, key=lambda entry: entry.complete, default=None)

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
        """Write all that waits by now, a batch a commit; False when it is to be tried again later.

        What comes meanwhile is for the next time: while requests come as fast as commits are made,
        each would otherwise have a commit of its own.
        """
        upto = self._written + len(self._waiting)
        while self._waiting and (self._written < upto or self._closing.is_set()):
            size = 1 if self._alone else _BATCH
            try:
                if not self._tried:
                    written_at = now()
                    self._tried = [_row(e, written_at) for e in islice(self._waiting, size)]
                rows = self._tried[:size]
                async with self._database.writing() as connection:
                    await connection.run_sync(partial(_insert, rows))
            except Exception as error:
                if _away(error):
                    waiting = len(self._waiting)
                    _log.exception("usage ledger: %d entries wait for the database", waiting)
                    return False
                if not self._alone:
                    self._alone = min(size, len(self._waiting))
                elif not self._given_up():
                    return False
            else:
                self._done(len(rows))
        return True

    def _given_up(self) -> bool:
        """Whether the first that waits, which has just failed alone, need not be tried again."""
        self._faults += 1
        if self._faults < _MOST_FAULTS and not self._closing.is_set():
            _log.exception("usage ledger: an entry fails, and is tried again")
            return False
        _log.exception("usage ledger can't write an entry; not booked: %s", self._waiting[0])
        self._done(1)
        return True

    def _done(self, count: int) -> None:
        """The first ``count`` wait no longer."""
        del self._tried[:count]
        for _ in range(count):
            self._waiting.popleft()
        self._written += count
        self._alone, self._faults = max(0, self._alone - count), 0


def _away(error: Exception) -> bool:
    """Whether it is the database's, and none of the entries'."""
    # A connection that is refused or not answered raises the driver's own OSError.
    if not isinstance(error, SQLAlchemyError | OSError):
        return False
    # PostgreSQL's driver has no class of its own for data that it can't take.
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return not (isinstance(error, IntegrityError) or str(state).startswith(_WRONG))


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
