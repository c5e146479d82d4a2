"""Tests which configurations are recorded, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moyin.store.config_history import KEPT, ConfigHistory
from moyin.store.sql import Database


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[ConfigHistory]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield ConfigHistory(database)
    await database.close()


async def test_only_changed_configurations_are_recorded(history: ConfigHistory) -> None:
    assert await history.list_newest(10) == []
    # Each replica records the same configuration; an earlier one may come back.
    for values in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}, {"a": 2}, {"a": 1, "b": 2}):
        await history.record(values)
    recorded_configs = await history.list_newest(10)
    assert [config.values for config in recorded_configs] == [
        {"a": 1, "b": 2},
        {"a": 2},
        {"a": 1, "b": 2},
    ]
    assert (
        recorded_configs[0].applied_at
        >= recorded_configs[1].applied_at
        >= recorded_configs[2].applied_at
    )
    assert [config.values for config in await history.list_newest(1)] == [{"a": 1, "b": 2}]


async def test_old_configurations_are_deleted(history: ConfigHistory) -> None:
    for number in range(KEPT + 5):
        await history.record({"number": number})
    recorded_configs = await history.list_newest(1_000)
    assert [config.values["number"] for config in recorded_configs] == list(range(KEPT + 4, 4, -1))
