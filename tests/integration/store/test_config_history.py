"""Tests the history of the configuration on SQLite and PostgreSQL, because their locks differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from moyin.store.config_history import ConfigHistory
from moyin.store.sql import Database

REPLICAS = 8


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[ConfigHistory]:
    database = Database(database_url)
    await database.ensure_schema()
    yield ConfigHistory(database)
    await database.close()


async def test_replicas_that_start_concurrently_record_a_configuration_once(
    history: ConfigHistory,
) -> None:
    for number in range(3):
        values = {"text": {"models": [number]}}
        await asyncio.gather(*(history.record(values) for _ in range(REPLICAS)))
    recorded_configs = await history.list_newest(10)
    assert [config.values["text"]["models"] for config in recorded_configs] == [[2], [1], [0]]
    assert (
        recorded_configs[0].applied_at
        >= recorded_configs[1].applied_at
        >= recorded_configs[2].applied_at
    )
