from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from moyin.store import usage
from moyin.store.schema import usage as table
from moyin.store.sql import Database, Transaction
from moyin.store.usage import UsageEntry, UsageLedger

ENTRY = UsageEntry(
    request_id="r1",
    owner="ada",
    backend="claude",
    model="claude-sonnet-5-5",
    input_tokens=100,
    cached_tokens=40,
    output_tokens=7,
    cost_usd=Decimal("0.000190000"),
    complete=True,
)


async def test_closing_writes_waiting_entries(database: Database) -> None:
    ledger = UsageLedger(database)
    await ledger.start()
    for number in range(1200):
        ledger.record(replace(ENTRY, request_id=f"r{number}"))
    await ledger.close()
    assert await ledger.get("ada", "r1") == ENTRY
    assert await ledger.get("ada", "r1199") is not None
    assert await ledger.get("bob", "r1") is None


async def test_a_full_ledger_logs_entries(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage, "_CAPACITY", 1)
    ledger = UsageLedger(database)
    ledger.record(ENTRY)
    ledger.record(replace(ENTRY, request_id="r2"))
    assert "not written" in caplog.text
    await ledger.start()
    await ledger.close()
    assert await ledger.get("ada", "r1") == ENTRY
    assert await ledger.get("ada", "r2") is None


class RefusingDatabase(Database):
    """Refuses the next ``refusals`` transactions with ``error``, by default a refused connection.

    asyncpg raises such errors, which SQLAlchemy does not wrap.
    """

    refusals = 0
    error: Exception = ConnectionRefusedError(111, "Connect call failed")
    # The number of commits whose reply is lost.
    lost = 0

    def writing(self) -> AbstractAsyncContextManager[Transaction]:
        if self.refusals:
            self.refusals -= 1
            raise self.error
        return self._lose_reply() if self.lost else super().writing()

    @asynccontextmanager
    async def _lose_reply(self) -> AsyncIterator[Transaction]:
        async with super().writing() as transaction:
            yield transaction
        self.lost -= 1
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.fixture
async def refusing_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RefusingDatabase]:
    monkeypatch.setattr(usage, "_FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(usage, "_RETRY_SECONDS", 0.01)
    database = RefusingDatabase(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield database
    await database.close()


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), TimeoutError()])
async def test_entries_wait_for_an_unavailable_server(
    refusing_database: RefusingDatabase, error: Exception
) -> None:
    refusing_database.refusals, refusing_database.error = 3, error
    ledger = UsageLedger(refusing_database)
    await ledger.start()
    ledger.record(ENTRY)
    async with asyncio.timeout(10):
        while await ledger.get("ada", "r1") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert refusing_database.refusals == 0
    ledger.record(replace(ENTRY, request_id="r2"))
    await ledger.close()
    assert await ledger.get("ada", "r2") is not None


async def test_a_commit_with_a_lost_reply_books_nothing_twice(
    refusing_database: RefusingDatabase,
) -> None:
    refusing_database.lost = 2
    ledger = UsageLedger(refusing_database)
    await ledger.start()
    ledger.record(ENTRY)
    async with asyncio.timeout(10):
        while refusing_database.lost:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ledger.record(replace(ENTRY, request_id="r2"))
    await ledger.close()
    rows = await refusing_database.read(
        lambda c: c.execute(sa.select(table.c.request_id)).scalars().all()
    )
    assert sorted(rows) == ["r1", "r2"]


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), ValueError("a mistake")])
async def test_closing_logs_unbooked_entries_and_never_raises(
    refusing_database: RefusingDatabase, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    refusing_database.refusals, refusing_database.error = 1_000, error
    ledger = UsageLedger(refusing_database)
    await ledger.start()
    ledger.record(ENTRY)
    await asyncio.sleep(0.05)
    await ledger.close()
    assert "not written: UsageEntry(request_id='r1'" in caplog.text
    assert str(error) in caplog.text


async def test_an_invalid_entry_does_not_block_others(
    refusing_database: RefusingDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = UsageLedger(refusing_database)
    await ledger.start()
    request_ids = [f"r{number}" for number in range(5)]
    for number, request_id in enumerate(request_ids):
        # SQLite cannot store this number; Python raises an error that SQLAlchemy does not wrap.
        input_tokens = 2**70 if number == 2 else 1
        ledger.record(replace(ENTRY, request_id=request_id, input_tokens=input_tokens))
    ledger.record(replace(ENTRY, request_id="r5", cost_usd=Decimal("NaN")))
    ledger.record(replace(ENTRY, request_id="r6"))
    async with asyncio.timeout(10):
        while await ledger.get("ada", "r6") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ledger.record(replace(ENTRY, request_id="r7"))
    await ledger.close()
    rows = await refusing_database.read(
        lambda c: c.execute(sa.select(table.c.request_id)).scalars().all()
    )
    assert sorted(rows) == ["r0", "r1", "r3", "r4", "r6", "r7"]
    for lost_id in ("r2", "r5"):
        assert f"not written: UsageEntry(request_id='{lost_id}'" in caplog.text


async def test_an_unexpected_error_is_retried(refusing_database: RefusingDatabase) -> None:
    refusing_database.refusals, refusing_database.error = (
        4,
        RuntimeError("a mistake of the driver's"),
    )
    ledger = UsageLedger(refusing_database)
    await ledger.start()
    for number in range(3):
        ledger.record(replace(ENTRY, request_id=f"r{number}"))
    async with asyncio.timeout(10):
        while await ledger.get("ada", "r2") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await ledger.close()
    rows = await refusing_database.read(
        lambda c: c.execute(sa.select(table.c.request_id)).scalars().all()
    )
    assert sorted(rows) == ["r0", "r1", "r2"]


async def test_entries_during_a_commit_wait_for_the_next_one(database: Database) -> None:
    """New entries wait for the next commit; one commit per request would be too slow under load."""
    ledger, commit_count = UsageLedger(database), 0
    original_writing = database.writing

    def record_during_commit() -> AbstractAsyncContextManager[Transaction]:
        nonlocal commit_count
        commit_count += 1
        assert commit_count < 3, "commits continue as long as entries arrive"
        ledger.record(replace(ENTRY, request_id=f"r{commit_count + 1}"))
        return original_writing()

    database.writing = record_during_commit  # type: ignore[method-assign]
    ledger.record(ENTRY)
    assert await ledger._write_waiting_entries()
    assert commit_count == 1
    assert len(ledger._waiting) == 1
