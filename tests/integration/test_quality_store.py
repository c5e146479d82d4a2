"""What tenants contribute to shared levels, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moyin.store.quality import QualityStore, SavedState
from moyin.store.sql import Database, migrate
from tests.integration.accounts_fixtures import Postgres


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_only_tenants_that_contribute_are_read(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'moyin.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.url(server.new())
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    await database.ready()
    try:
        store = QualityStore(database)
        level = {"qwen3-8b": {"code": 0.5}}
        await store.save("ada", SavedState(state={}, number=1, levels=level))
        await store.save("bob", SavedState(state={}, number=1, levels={}))
        assert await store.levels() == [level]
        # A later state takes the contribution back, an earlier one changes nothing.
        await store.save("ada", SavedState(state={}, number=2))
        await store.save("ada", SavedState(state={}, number=1, levels=level))
        assert await store.levels() == []
    finally:
        await database.close()
