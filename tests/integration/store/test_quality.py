"""Tests how tenants share what they know of models' quality, on SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.store.quality import QualityStore, SavedState
from moyin.store.sql import Database, migrate, now
from tests.integration.access.fixtures import Postgres


@pytest.fixture(params=["sqlite", "postgres"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database without tables, once for SQLite and for PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'moyin.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.create_database())


async def test_only_tenants_that_contribute_are_read(url: str) -> None:
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    await database.ensure_schema()
    try:
        store = QualityStore(database)
        level = {"qwen3-8b": {"code": 0.5}}
        await store.save_state("ada", SavedState(state={}, number=1, levels=level))
        await store.save_state("bob", SavedState(state={}, number=1, levels={}))
        assert await store.list_levels() == [level]
        # A later state takes the contribution back, an earlier one changes nothing.
        await store.save_state("ada", SavedState(state={}, number=2))
        await store.save_state("ada", SavedState(state={}, number=1, levels=level))
        assert await store.list_levels() == []
    finally:
        await database.close()


async def test_writes_without_levels_keep_the_stored_levels(url: str) -> None:
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    await database.ensure_schema()
    store, level = QualityStore(database), {"qwen3-8b": {"code": 0.5}}
    old_table = sa.table(
        "quality_states", *map(sa.column, ("owner", "state", "number", "updated_at"))
    )

    async def save_without_levels(owner: str, number: int) -> None:
        """Write a tenant's state as an older replica does, without the column `levels`."""
        values = {"state": sa.literal({}, sa.JSON), "number": number, "updated_at": now()}
        updated_at = sa.literal(values["updated_at"], sa.DateTime(timezone=True))
        insert = postgresql.insert if url.startswith("postgresql") else sqlite.insert
        statement: Any = insert(old_table).values(
            owner=owner, **(values | {"updated_at": updated_at})
        )
        statement = statement.on_conflict_do_update(
            index_elements=["owner"], set_={"number": number}, where=old_table.c.number < number
        )
        await database.write(lambda connection: connection.execute(statement))

    try:
        await save_without_levels("ada", 1)
        await save_without_levels("bob", 1)
        await save_without_levels("ada", 2)
        assert await store.list_levels() == []
        await store.save_state("ada", SavedState(state={}, number=3, levels=level))
        await save_without_levels("ada", 4)
        assert await store.list_levels() == [level]
        assert (await store.get_state("ada") or SavedState(state={}, number=0)).number == 4
    finally:
        await database.close()


async def test_tenant_is_listed_once_when_its_state_is_saved_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant is listed once, even if saving its state meanwhile moves it to another page."""
    monkeypatch.setattr("moyin.store.quality._PAGE", 2)
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    await database.ensure_schema()
    store = QualityStore(database)
    try:
        for number in range(4):
            levels = {"qwen3-8b": {"code": float(number)}}
            await store.save_state(f"t{number}", SavedState(state={}, number=1, levels=levels))
        original_read, pending_states = (
            database.read,
            [SavedState(state={}, number=2, levels={"a": {"code": 9.0}})],
        )

        async def read_while_saving(operation: Any) -> Any:
            rows = await original_read(operation)
            while pending_states:
                await store.save_state("t0", pending_states.pop())
            return rows

        monkeypatch.setattr(database, "read", read_while_saving)
        listed_levels = await store.list_levels()
        assert len(listed_levels) == len(
            {str(levels_of_tenant) for levels_of_tenant in listed_levels}
        )
    finally:
        await database.close()
