"""Tests that booking a render's cost waits only shortly for a busy database, and books it once."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from deployments.render import bookkeeper
from deployments.render.bookkeeper import RunBookkeeper
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.store.render_ledger import RenderLedger
from moyin.store.schema import usage
from moyin.store.sql import Database
from tests.waiting import eventually

ACCOUNT = RenderAccount(
    owner="ada", job_id="j", pool="p", price=RenderPrice(usd_per_gpu_hour=Decimal(3600))
)


class CountingLedger(RenderLedger):
    """A ledger that counts its unfinished transactions."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.open = self.most_open = 0

    async def book(self, runs: Sequence[RenderRun]) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await super().book(runs)
        finally:
            self.open -= 1


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield database
    await database.close()


async def test_a_booking_does_not_wait_for_the_writer_of_another_process(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeper, "_TIMEOUT_SECONDS", 0.05)
    ledger = CountingLedger(database)
    run_bookkeeper = RunBookkeeper(ledger)
    run = RenderRun(id="1" * 32, prompt_id="p", seconds=2.0, is_ended=True, account=ACCOUNT)
    with closing(sqlite3.connect(tmp_path / "moyin.db", isolation_level=None)) as other_writer:
        other_writer.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            assert await run_bookkeeper.settle("actor", [run]) == []
        assert (ledger.open, ledger.most_open) == (1, 1), "the others wait for the first"
        other_writer.execute("ROLLBACK")
    await eventually(lambda: ledger.open == 0)
    monkeypatch.setattr(bookkeeper, "_TIMEOUT_SECONDS", 60)
    assert await run_bookkeeper.settle("actor", [run]) == [run.id]
    rows = await database.fetch_all(sa.select(usage.c.id, usage.c.cost_nano_usd))
    assert [tuple(row.values()) for row in rows] == [(run.id, 2_000_000_000)]
