from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from moyin.errors import Overloaded
from moyin.store.sql import Database
from moyin.store.usage_reports import CallFilter, PriceClasses, UsageReports


async def test_a_tenant_with_many_reports_does_not_keep_others_from_theirs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()
    original_read = database.read

    async def slow_read(work: Callable[[Any], Any]) -> Any:
        await released.wait()
        return await original_read(work)

    monkeypatch.setattr(database, "read", slow_read)
    reports = UsageReports(database)

    def report(owner: str) -> asyncio.Task[Any]:
        return asyncio.create_task(reports.sum_calls(CallFilter(owner=owner), [], PriceClasses()))

    accepted = [report("ada"), report("ada")]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await report("ada")
    accepted.append(report("bob"))
    released.set()
    assert await asyncio.gather(*accepted) == [[], [], []]
    assert await report("ada") == []
