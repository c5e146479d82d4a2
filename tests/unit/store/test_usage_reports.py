from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from moyin.errors import Overloaded
from moyin.store.sql import Database
from moyin.store.usage_reports import CallFilter, PriceClasses, UsageReports


async def test_a_tenant_with_many_reports_does_not_block_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_released = asyncio.Event()
    original_read = database.read

    async def slow_read(work: Callable[[Any], Any]) -> Any:
        await is_released.wait()
        return await original_read(work)

    monkeypatch.setattr(database, "read", slow_read)
    reports = UsageReports(database)

    def start_report(owner: str) -> asyncio.Task[Any]:
        return asyncio.create_task(reports.sum_calls(CallFilter(owner=owner), [], PriceClasses()))

    accepted_reports = [start_report("ada"), start_report("ada")]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await start_report("ada")
    accepted_reports.append(start_report("bob"))
    is_released.set()
    assert await asyncio.gather(*accepted_reports) == [[], [], []]
    assert await start_report("ada") == []
