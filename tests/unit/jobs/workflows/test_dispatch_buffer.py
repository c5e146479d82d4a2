from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.exc import OperationalError

from moyin.jobs.workflows.launcher import DispatchBuffer


class Jobs:
    """A fake store that records marks; its first ``failures`` calls fail."""

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


async def test_marks_are_written_together() -> None:
    jobs: Any = Jobs()
    marks = DispatchBuffer(jobs, delay_seconds=0.01)
    for job_id in ("a", "b", "a"):
        marks.add(job_id)
    await asyncio.wait_for(jobs.has_written.wait(), 10)
    marks.add("c")
    await marks.close()
    assert jobs.written_ids == [("a", "b"), ("c",)]


async def test_an_outage_of_the_database_loses_only_the_marks() -> None:
    jobs: Any = Jobs(failures=1)
    marks = DispatchBuffer(jobs, delay_seconds=60)
    marks.add("a")
    await marks.close()
    marks.add("b")
    await marks.close()
    assert jobs.written_ids == [("b",)]
