"""Measures lists of jobs, and the deletion of many jobs, in a database with a million jobs.

Run it with ``python -m benchmarks.history sqlite`` or ``postgresql`` (the server from the Python
package that the tests use). It prints the milliseconds of 100 pages per filter, and those of
submissions with and without a concurrent deletion of a tenth of the jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
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
from sqlalchemy.ext.asyncio import create_async_engine

from moyin.domain.job import JobStatus, StepKind
from moyin.store.job_filter import JobFilter
from moyin.store.job_rows import NewJob, build_row
from moyin.store.job_words import join_words
from moyin.store.jobs import JobStore
from moyin.store.schema import job_texts, jobs
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
    "search, in most jobs": JobFilter(search="masterpiece"),
    "search, in 1 %": JobFilter(search="word90"),
    "search, in 0.1 %": JobFilter(search="word900"),
    "search, in 10 jobs": JobFilter(search="needle"),
    "search, in none": JobFilter(search="nothing"),
    "search, two words": JobFilter(search="word30 word40"),
    "search, Japanese": JobFilter(search="夕焼けの海"),
    "search and status": JobFilter(search="word90", statuses=(JobStatus.FAILED,)),
    "search and metadata": JobFilter(search="word900", metadata={"project": "p7"}),
}
# The words of prompts are as frequent as those of languages: the n-th has a share of 1 / n.
_WORDS = [f"word{number}" for number in range(1, 20_001)]
_WEIGHTS = list(itertools.accumulate(1 / number for number in range(1, 20_001)))
_WORDS_PER_PROMPT = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", choices=("sqlite", "postgresql"))
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs in the database")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="moyin-history-") as folder,
        _open_database_url(arguments.database, Path(folder)) as url,
    ):
        asyncio.run(_measure_history(url, arguments.jobs))
    return 0


@contextlib.contextmanager
def _open_database_url(database: str, folder: Path) -> Iterator[str]:
    if database == "sqlite":
        yield f"sqlite:///{folder / 'jobs.sqlite'}"
        return
    # For root, PostgreSQL runs as another user, who may not enter a private folder.
    folder.chmod(0o755)
    server = Postgres(folder / "postgres")
    try:
        yield server.url("postgres")
    finally:
        server.close()


async def _measure_history(url: str, count: int) -> None:
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    try:
        store = JobStore(database)
        await _insert_jobs(database, count)
        await _analyze_database(database, url)
        for name, job_filter in _FILTERS.items():
            _print_seconds(f"page of 50, filter {name}", await _time_pages(store, job_filter))
        _print_seconds(
            "submission without text",
            await _time_submissions(store, asyncio.sleep(5), word_count=0),
        )
        _print_seconds("submission alone", await _time_submissions(store, asyncio.sleep(5)))
        deletion = _delete_jobs(store, count // 10)
        _print_seconds(
            f"submission beside {count // 10:,} deletions", await _time_submissions(store, deletion)
        )
    finally:
        await database.close()


async def _insert_jobs(database: Database, count: int) -> None:
    """Insert ``count`` jobs of two owners, with submission times within one day."""
    rng, started_at = random.Random(7), now() - timedelta(days=1)
    for first_number in range(0, count, _ROWS_PER_INSERT):
        ordinals = range(first_number, min(first_number + _ROWS_PER_INSERT, count))
        rows = [
            _make_row(rng, started_at + timedelta(days=1) * (number / count)) for number in ordinals
        ]
        text_rows = [
            {"job_id": row["id"], "words": join_words(row["owner"], _make_text(rng, ordinal))}
            for ordinal, row in zip(ordinals, rows, strict=True)
        ]

        def insert(connection: sa.Connection, rows: Any = rows, texts: Any = text_rows) -> None:
            connection.execute(jobs.insert(), rows)
            connection.execute(job_texts.insert().inline(), texts)

        await database.write(insert)
        print(f"\r{first_number + len(rows):,} jobs", end="", file=sys.stderr)
    print(file=sys.stderr)


async def _analyze_database(database: Database, url: str) -> None:
    """Update the database's statistics, and vacuum PostgreSQL, which it otherwise does by itself."""
    if url.startswith("sqlite"):
        await database.write(lambda connection: connection.execute(sa.text("ANALYZE")))
        return
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text("VACUUM ANALYZE"))
    finally:
        await engine.dispose()


def _make_row(rng: random.Random, created_at: Any) -> dict[str, Any]:
    kind = rng.choices(("render", "chat", "pipeline"), (8, 3, 1))[0]
    statuses = ("succeeded", "failed", "cancelled", "queued", "running")
    status = rng.choices(statuses, (90, 5, 3, 1, 1))[0]
    pool = rng.choices(("default", "large"), (9, 1))[0]
    new_job = _make_job(rng.choices(_OWNERS, (9, 1))[0], kind, pool, f"p{rng.randrange(50)}")
    templates = ["portrait"] if kind == "render" and rng.random() < 0.1 else None
    row_changes = {"status": status, "created_at": created_at, "templates": templates}
    return {**build_row(new_job), **row_changes, "dispatched": True}


def _make_text(rng: random.Random, ordinal: int) -> str:
    """Return the text of a random prompt.

    Args:
        ordinal: the number of the job. For some numbers the text has a rare word or is partly
            Japanese.
    """
    words = rng.choices(_WORDS, cum_weights=_WEIGHTS, k=_WORDS_PER_PROMPT)
    if rng.random() < 0.8:
        words.append("masterpiece")
    if ordinal % 100_000 == 1:
        words.append("needle")
    if ordinal % 500 == 2:
        words.append("夕焼けの海と少女")
    return " ".join(words)


def _make_job(owner: str, kind: str, pool: str, project: str, prompt_text: str = "") -> NewJob:
    step = StepKind.CHAT if kind == "chat" else StepKind.RENDER
    return NewJob(
        id=str(uuid.uuid4()),
        owner=owner,
        kind=kind,
        spec=uuid.uuid4().hex * 2,
        heads=((step, pool),),
        metadata={"project": project, "artist": "somebody"},
        text=prompt_text,
    )


async def _time_pages(store: JobStore, job_filter: JobFilter) -> list[float]:
    """Return the seconds of each of several consecutive pages of the jobs that match a filter."""
    seconds, cursor = [], None
    for _ in range(_PAGES):
        started_at = time.perf_counter()
        _, cursor = await store.list_page("ada", job_filter, cursor=cursor)
        seconds.append(time.perf_counter() - started_at)
    return seconds


async def _time_submissions(
    store: JobStore, concurrent_work: Awaitable[Any], word_count: int = _WORDS_PER_PROMPT
) -> list[float]:
    """Submit a job every 20 ms while ``concurrent_work`` runs; return the seconds of each.

    Args:
        word_count: the number of words in the text of a job.
    """
    work_task, seconds, rng = asyncio.ensure_future(concurrent_work), [], random.Random(8)
    while not work_task.done():
        prompt_text = " ".join(rng.choices(_WORDS, cum_weights=_WEIGHTS, k=word_count))
        started_at = time.perf_counter()
        await store.create(_make_job("ada", "render", "default", "new", prompt_text))
        seconds.append(time.perf_counter() - started_at)
        await asyncio.sleep(0.02)
    await work_task
    return seconds


async def _delete_jobs(store: JobStore, count: int) -> None:
    """Delete ``count`` jobs by a filter, in chunks like `moyin.jobs.history`; print the time."""
    job_filter = JobFilter(statuses=(JobStatus.SUCCEEDED,))
    started_at, remaining_count, cursor = time.perf_counter(), count, None
    while remaining_count > 0:
        page = await store.list_ids("ada", job_filter, limit=_CHUNK, cursor=cursor)
        remaining_count -= len((await store.delete("ada", page.ids)).deleted)
        cursor = page.next_cursor
    print(f"{count:,} jobs deleted in {time.perf_counter() - started_at:.1f} s")


def _print_seconds(description: str, seconds: list[float]) -> None:
    percentiles = statistics.quantiles(seconds, n=100)
    p50, p95 = 1000 * percentiles[49], 1000 * percentiles[94]
    print(f"{description}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, worst {1000 * max(seconds):.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
