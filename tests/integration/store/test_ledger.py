"""Tests the ledger of text requests on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from moyin.store import usage
from moyin.store.sql import Database
from moyin.store.usage import UsageEntry, UsageLedger
from tests.waiting import eventually

ENTRY = UsageEntry(
    request_id="good",
    owner="ada",
    backend="local",
    model="smol",
    input_tokens=1,
    cached_tokens=0,
    output_tokens=1,
    cost_usd=Decimal(0),
    complete=True,
)


@pytest.mark.parametrize(
    "wrong_members",
    [{"input_tokens": 2**70}, {"input_tokens": 2**31}, {"model": "x" * 129}, {"owner": None}],
)
async def test_entries_that_the_database_refuses_delay_no_others(
    database_url: str,
    wrong_members: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other entries are stored although the database refuses one of the same transaction.

    PostgreSQL's driver reports an invalid row like an outage; SQLite accepts some invalid rows.
    """
    monkeypatch.setattr(usage, "_FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(usage, "_RETRY_SECONDS", 0.01)
    database = Database(database_url)
    await database.ensure_schema()
    ledger = UsageLedger(database)
    await ledger.start()
    ledger.record(replace(ENTRY, request_id="wrong", **wrong_members))
    ledger.record(ENTRY)
    await eventually(lambda: ledger.get("ada", "good"))
    await ledger.close()
    if await ledger.get("ada", "wrong") is None:
        assert "not written: UsageEntry(request_id='wrong'" in caplog.text
    await database.close()
