from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.exc import OperationalError

from moyin.jobs.workflows.launcher import DispatchBuffer


class FakeJobStore:
    """A fake store that records which jobs are marked as dispatched; its first ``failures`` calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.has_written = asyncio.Event()
        self.written_ids: list[tuple[str, ...]] = []
        self._failures = failures

    async def mark_dispatched(self, *job_ids: str) -> None:
        if self._failures:
            self._failures -= 1
            raise OperationalError("UPDATE", {}, Exception("locked"))
        self.written_ids.append(job_ids)
        self.has_written.set()


async def test_dispatched_jobs_are_marked_together() -> None:
    jobs: Any = FakeJobStore()
    buffer = DispatchBuffer(jobs, delay_seconds=0.01)
    for job_id in ("a", "b", "a"):
        buffer.add(job_id)
    await asyncio.wait_for(jobs.has_written.wait(), 10)
    buffer.add("c")
    await buffer.close()
    assert jobs.written_ids == [("a", "b"), ("c",)]


async def test_an_outage_of_the_database_loses_only_the_marks() -> None:
    jobs: Any = FakeJobStore(failures=1)
    buffer = DispatchBuffer(jobs, delay_seconds=60)
    buffer.add("a")
    await buffer.close()
    buffer.add("b")
    await buffer.close()
    assert jobs.written_ids == [("b",)]
