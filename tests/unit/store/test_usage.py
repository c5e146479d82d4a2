from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from moyin.store import usage
from moyin.store.sql import Database
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


async def test_closing_writes_what_waits(database: Database) -> None:
    ledger = UsageLedger(database)
    await ledger.start()
    for number in range(1200):
        ledger.record(replace(ENTRY, request_id=f"r{number}"))
    await ledger.close()
    assert await ledger.get("ada", "r1") == ENTRY
    assert await ledger.get("ada", "r1199") is not None
    assert await ledger.get("bob", "r1") is None


async def test_a_full_ledger_tells_instead_of_growing(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage, "_CAPACITY", 1)
    ledger = UsageLedger(database)
    ledger.record(ENTRY)
    ledger.record(replace(ENTRY, request_id="r2"))
    assert "not booked" in caplog.text
    await ledger.start()
    await ledger.close()
    assert await ledger.get("ada", "r1") == ENTRY
    assert await ledger.get("ada", "r2") is None
