from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from deployments.render import progress_reporter as module
from deployments.render.progress_reporter import ProgressReporter
from moyin.domain.job import EventType, Progress
from moyin.domain.renderer import RenderProgress
from tests.waiting import eventually


class FakeStores:
    """The two stores that the reporter writes to; they record what is written."""

    def __init__(self) -> None:
        self.rows: list[Progress] = []
        self.events: list[Mapping[str, Any]] = []
        self.failures_left = 0
        self.order: list[str] = []
        self.can_start = asyncio.Event()
        self.can_start.set()
        self.failed_starts = 0
        self.written = asyncio.Event()

    async def record_progress(self, job_id: str, attempt: int | None, progress: Progress) -> bool:
        assert (job_id, attempt) == ("job", 3)
        if self.failures_left:
            self.failures_left -= 1
            raise OperationalError("update", {}, Exception("away"))
        self.rows.append(progress)
        self.order.append("row")
        self.written.set()
        return True

    async def publish(self, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        assert (job_id, kind) == ("job", EventType.PROGRESS)
        self.events.append(data)
        self.order.append("event")

    async def mark_started(self) -> bool:
        if self.failed_starts:
            self.failed_starts -= 1
            raise OperationalError("update", {}, Exception("away"))
        await self.can_start.wait()
        self.order.append("start")
        return True


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> FakeStores:
    monkeypatch.setattr(module, "_EVENT_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(module, "_ROW_INTERVAL_SECONDS", 0.1)
    return FakeStores()


def make_reporter(stores: FakeStores) -> ProgressReporter:
    untyped_stores: Any = stores
    return ProgressReporter(
        untyped_stores,
        untyped_stores,
        job_id="job",
        attempt=3,
        step=2,
        mark_started=stores.mark_started,
    )


async def test_only_the_newest_of_many_progress_events_are_sent(stores: FakeStores) -> None:
    started_at = time.monotonic()
    async with make_reporter(stores) as reporter:
        reporter.start()
        for value in range(200):
            reporter.report(RenderProgress(value=value, max=200, node="7"))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)
    # A loaded machine takes longer, and then more events are sent.
    seconds = time.monotonic() - started_at
    assert 2 <= len(stores.events) <= 2 + seconds / module._EVENT_INTERVAL_SECONDS
    assert stores.events[-1] == {"value": 199, "max": 200, "step": 2, "node": "7"}
    assert 1 <= len(stores.rows) <= 2 + seconds / module._ROW_INTERVAL_SECONDS
    assert stores.rows[-1] == Progress(value=199, max=200, step=2)


async def test_failed_row_is_written_again(stores: FakeStores) -> None:
    stores.failures_left = 1
    async with make_reporter(stores) as reporter:
        reporter.start()
        reporter.report(RenderProgress(value=1, max=2))
        async with asyncio.timeout(30):
            await stores.written.wait()
    assert stores.rows == [Progress(value=1, max=2, step=2)]
    assert stores.events == [{"value": 1, "max": 2, "step": 2}]


async def test_hanging_store_does_not_delay_the_end(
    stores: FakeStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT_SECONDS", 0.1)
    never_set = asyncio.Event()

    async def hang(*_: Any) -> None:
        # Like a client that mistakes a cancellation for its own timeout, and goes on.
        with contextlib.suppress(asyncio.CancelledError):
            await never_set.wait()
        await never_set.wait()

    monkeypatch.setattr(stores, "publish", hang)
    async with asyncio.timeout(30):
        async with make_reporter(stores) as reporter:
            reporter.start()
            reporter.report(RenderProgress(value=1, max=2))
            await asyncio.sleep(0.1)
    never_set.set()
    await asyncio.sleep(0.05)


async def test_start_is_written_before_all_progress(stores: FakeStores) -> None:
    stores.can_start.clear()
    async with make_reporter(stores) as reporter:
        reporter.start()
        reporter.report(RenderProgress(value=1, max=2))
        await asyncio.sleep(0.3)
        assert stores.order == []
        stores.can_start.set()
        async with asyncio.timeout(30):
            await stores.written.wait()
    assert stores.order[0] == "start"
    assert sorted(stores.order[1:]) == ["event", "row"]


async def test_render_that_never_began_writes_nothing(stores: FakeStores) -> None:
    async with make_reporter(stores) as reporter:
        reporter.report(RenderProgress(value=0, max=2))
        await asyncio.sleep(0.3)
    assert stores.order == []


async def test_start_of_a_short_render_is_written(stores: FakeStores) -> None:
    async with make_reporter(stores) as reporter:
        reporter.start()
    assert stores.order == ["start"]


async def test_failed_start_is_written_again(stores: FakeStores) -> None:
    stores.failed_starts = 1
    async with make_reporter(stores) as reporter:
        reporter.start()
        await eventually(lambda: "start" in stores.order)
    assert stores.order == ["start"]
