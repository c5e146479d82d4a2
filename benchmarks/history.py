"""Measures lists of jobs, and the deletion of many, in a database with a million jobs.

Run it with ``python -m benchmarks.history sqlite`` or ``postgresql`` (the server of the tests'
wheel). It prints the milliseconds of 100 pages per filter, and of submissions with and without a
deletion of a tenth of the jobs beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from moyin.domain.job import JobStatus, StepKind
from moyin.store.job_filter import JobFilter
from moyin.store.job_rows import NewJob, build_row
from moyin.store.jobs import JobStore
from moyin.store.schema import jobs
from moyin.store.sql import Database, migrate, now
from tests.integration.access.fixtures import Postgres

_OWNERS = ("ada", "bob")
_PAGES = 100
_ROWS_PER_INSERT = 5_000
_CHUNK = 100
_FILTERS = {
    "none": JobFilter(),
    "status": JobFilter(statuses=(JobStatus.FAILED,)),
    "two statuses": JobFilter(statuses=(JobStatus.FAILED, JobStatus.CANCELLED)),
    "kind": JobFilter(kind="chat"),
    "status and kind": JobFilter(statuses=(JobStatus.SUCCEEDED,), kind="render"),
    "pool": JobFilter(pool="large"),
    "template": JobFilter(template="portrait"),
    "metadata": JobFilter(metadata={"project": "p7"}),
    "time": JobFilter(created_before=now() - timedelta(hours=6)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", choices=("sqlite", "postgresql"))
    parser.add_argument("--jobs", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="moyin-history-") as folder,
        _serving(arguments.database, Path(folder)) as url,
    ):
        asyncio.run(_measure(url, arguments.jobs))
    return 0


@contextlib.contextmanager
def _serving(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'jobs.sqlite'}"
        return
    # As root, the server runs as a user who may not enter a private folder.
    folder.chmod(0o755)
    server = Postgres(folder / "postgres")
    try:
        yield server.url("postgres")
    finally:
        server.close()


async def _measure(url: str, count: int) -> None:
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    try:
        store = JobStore(database)
        await _fill(database, count)
        for name, where in _FILTERS.items():
            _show(f"page of 50, filter {name}", await _time_pages(store, where))
        _show("submission alone", await _time_submissions(store, asyncio.sleep(5)))
        deletion = _delete(store, count // 10)
        _show(
            f"submission beside {count // 10:,} deletions", await _time_submissions(store, deletion)
        )
    finally:
        await database.close()


async def _fill(database: Database, count: int) -> None:
    """Insert jobs of two owners that were submitted within a day."""
    numbers, began = random.Random(7), now() - timedelta(days=1)
    for start in range(0, count, _ROWS_PER_INSERT):
        rows = [
            _make_row(numbers, began + timedelta(days=1) * (number / count))
            for number in range(start, min(start + _ROWS_PER_INSERT, count))
        ]
        await database.write(lambda connection, rows=rows: connection.execute(jobs.insert(), rows))  # type: ignore[misc]
        print(f"\r{start + len(rows):,} jobs", end="", file=sys.stderr)
    print(file=sys.stderr)
    await database.write(lambda connection: connection.execute(sa.text("ANALYZE jobs")))


def _make_row(numbers: random.Random, created_at: Any) -> dict[str, Any]:
    kind = numbers.choices(("render", "chat", "pipeline"), (8, 3, 1))[0]
    statuses = ("succeeded", "failed", "cancelled", "queued", "running")
    status = numbers.choices(statuses, (90, 5, 3, 1, 1))[0]
    pool = numbers.choices(("default", "large"), (9, 1))[0]
    new = _make_job(numbers.choices(_OWNERS, (9, 1))[0], kind, pool, f"p{numbers.randrange(50)}")
    templates = ["portrait"] if kind == "render" and numbers.random() < 0.1 else None
    changes = {"status": status, "created_at": created_at, "templates": templates}
    return {**build_row(new), **changes, "dispatched": True}


def _make_job(owner: str, kind: str, pool: str, project: str) -> NewJob:
    step = StepKind.CHAT if kind == "chat" else StepKind.RENDER
    return NewJob(
        id=str(uuid.uuid4()),
        owner=owner,
        kind=kind,
        spec=uuid.uuid4().hex * 2,
        heads=((step, pool),),
        metadata={"project": project, "artist": "somebody"},
    )


async def _time_pages(store: JobStore, where: JobFilter) -> list[float]:
    """Return the seconds of pages, each of which continues the one before."""
    seconds, cursor = [], None
    for _ in range(_PAGES):
        began = time.perf_counter()
        _, cursor = await store.list_page("ada", where, cursor=cursor)
        seconds.append(time.perf_counter() - began)
    return seconds


async def _time_submissions(store: JobStore, beside: Awaitable[Any]) -> list[float]:
    """Return the seconds of submissions, one every 20 ms, for as long as ``beside`` takes."""
    task, seconds = asyncio.ensure_future(beside), []
    while not task.done():
        began = time.perf_counter()
        await store.create(_make_job("ada", "render", "default", "new"))
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    await task
    return seconds


async def _delete(store: JobStore, count: int) -> None:
    """Delete jobs by filters in chunks, as `moyin.jobs.history` does."""
    where = JobFilter(statuses=(JobStatus.SUCCEEDED,))
    began, left, cursor = time.perf_counter(), count, None
    while left > 0:
        page = await store.list_ids("ada", where, limit=_CHUNK, cursor=cursor)
        left -= len((await store.delete("ada", page.ids)).deleted)
        cursor = page.next_cursor
    print(f"{count:,} jobs deleted in {time.perf_counter() - began:.1f} s")


def _show(what: str, seconds: list[float]) -> None:
    hundredths = statistics.quantiles(seconds, n=100)
    p50, p95 = 1000 * hundredths[49], 1000 * hundredths[94]
    print(f"{what}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, worst {1000 * max(seconds):.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
