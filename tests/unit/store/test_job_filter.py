"""Tests lists of jobs by filters, and the pages of such lists."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from moyin.domain.job import JobStatus, StepKind
from moyin.store import pages
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore, NewJob
from moyin.store.schema import jobs as rows
from moyin.store.sql import Database

START = datetime(2026, 1, 1, tzinfo=UTC)


class Jobs:
    """Creates jobs, one a minute from ``START`` on, and lists them by their metadata ``n``."""

    def __init__(self, database: Database) -> None:
        self.store = JobStore(database)
        self._database = database
        self._count = 0

    async def add(
        self,
        status: JobStatus = JobStatus.SUCCEEDED,
        *,
        owner: str = "ada",
        kind: str = "render",
        metadata: dict[str, str] | None = None,
        heads: tuple[tuple[StepKind, str], ...] = ((StepKind.RENDER, "default"),),
        templates: tuple[str, ...] = (),
    ) -> str:
        number = str(self._count)
        new = NewJob(
            id=str(uuid.uuid4()),
            owner=owner,
            kind=kind,
            spec="0" * 64,
            heads=heads,
            metadata={"n": number, **(metadata or {})},
            templates=templates,
        )
        await self.store.create(new)
        created_at = START + timedelta(minutes=self._count)
        change = rows.update().where(rows.c.id == new.id)
        values = {"status": status.value, "created_at": created_at}
        await self._database.write(lambda c: c.execute(change.values(values)))
        self._count += 1
        return number

    async def find(self, owner: str = "ada", *, limit: int = 50, **conditions: Any) -> list[str]:
        """Return the numbers of all jobs that match, by pages of ``limit``."""
        numbers, cursor = [], None
        while True:
            page, cursor = await self.store.list_page(
                owner, JobFilter(**conditions), limit=limit, cursor=cursor
            )
            numbers += [job.metadata["n"] for job in page]
            if cursor is None:
                return numbers


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


async def test_several_statuses_are_merged_by_time(jobs: Jobs) -> None:
    statuses = [JobStatus.FAILED, JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED]
    for status in statuses:
        await jobs.add(status)
    await jobs.add(JobStatus.QUEUED, kind="chat")
    both = (JobStatus.QUEUED, JobStatus.FAILED)
    assert await jobs.find(statuses=both) == ["4", "3", "1", "0"]
    assert await jobs.find(statuses=both, limit=1) == ["4", "3", "1", "0"]
    assert await jobs.find(statuses=(JobStatus.QUEUED, JobStatus.QUEUED)) == ["4", "1"]
    assert await jobs.find(statuses=both, kind="render") == ["3", "1", "0"]
    assert await jobs.find(kind="chat") == ["4"]
    assert await jobs.find(statuses=(JobStatus.CANCELLED,)) == []


async def test_pool_and_template_of_any_step_count(jobs: Jobs) -> None:
    two = ((StepKind.RENDER, "big"), (StepKind.RENDER, "default"))
    await jobs.add(heads=two, templates=("swatch", "poster_a"))
    await jobs.add(heads=((StepKind.CHAT, "big"),))
    await jobs.add(templates=("poster-a",))
    assert await jobs.find(pool="big") == ["0"]
    assert await jobs.find(pool="default") == ["2", "0"]
    assert await jobs.find(pool="bi") == []
    assert await jobs.find(template="poster_a") == ["0"]
    assert await jobs.find(template="poster") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a", "b"),
        ('a"b', 'c"d'),
        ("a\\b", "\\"),
        ("a.b", ""),
        ("$", "%"),
        ("é\n", "🎈"),
        ("'", "_"),
    ],
)
async def test_metadata_match_exactly(jobs: Jobs, key: str, value: str) -> None:
    await jobs.add(metadata={key: value})
    await jobs.add(metadata={"other": value})
    await jobs.add(metadata={key: value + "x"})
    assert await jobs.find(metadata={key: value}) == ["0"]
    assert await jobs.find(metadata={key: value, "n": "0"}) == ["0"]
    assert await jobs.find(metadata={key: value, "n": "1"}) == []


async def test_times_include_the_first_and_exclude_the_last(jobs: Jobs) -> None:
    for _ in range(4):
        await jobs.add()
    times: dict[str, Any] = {
        "created_after": START + timedelta(minutes=1),
        "created_before": START + timedelta(minutes=3),
    }
    assert await jobs.find(**times) == ["2", "1"]
    assert await jobs.find(**times, pool="default") == ["2", "1"]


async def test_other_owners_see_nothing(jobs: Jobs) -> None:
    await jobs.add(templates=("swatch",))
    alternatives: tuple[dict[str, Any], ...] = (
        {},
        {"kind": "render"},
        {"pool": "default"},
        {"template": "swatch"},
        {"metadata": {"n": "0"}},
    )
    for conditions in alternatives:
        assert await jobs.find("bob", **conditions) == []
        assert await jobs.find("ada", **conditions) == ["0"]


@pytest.mark.parametrize(
    "conditions", [{"statuses": (JobStatus.SUCCEEDED, JobStatus.FAILED)}, {"pool": "default"}]
)
async def test_new_jobs_do_not_change_later_pages(jobs: Jobs, conditions: Any) -> None:
    for _ in range(5):
        await jobs.add()
    where = JobFilter(**conditions)
    first, cursor = await jobs.store.list_page("ada", where, limit=2)
    await jobs.add()
    rest, _ = await jobs.store.list_page("ada", where, limit=9, cursor=cursor)
    assert [job.metadata["n"] for job in (*first, *rest)] == ["4", "3", "2", "1", "0"]


async def test_a_page_reads_a_bounded_number_of_rows(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 3)
    rare = await jobs.add(heads=((StepKind.RENDER, "rare"),))
    for _ in range(7):
        await jobs.add()
    where = JobFilter(pool="rare")
    page, cursor = await jobs.store.list_page("ada", where, limit=2)
    assert page == [] and cursor is not None
    assert await jobs.find(pool="rare", limit=2) == [rare]
    # Pages that are full before they have read all rows continue after their last job.
    assert await jobs.find(pool="default", limit=2) == ["7", "6", "5", "4", "3", "2", "1"]


async def test_ids_and_counts_are_those_of_the_pages(jobs: Jobs) -> None:
    for status in (JobStatus.FAILED, JobStatus.QUEUED, JobStatus.FAILED):
        await jobs.add(status)
    where = JobFilter(statuses=(JobStatus.FAILED,))
    listed, _ = await jobs.store.list_page("ada", where)
    page = await jobs.store.list_ids("ada", where, limit=9, cursor=None)
    assert list(page.ids) == [job.id for job in listed]
    assert await jobs.store.count("ada", where) == 2
    assert await jobs.store.count("bob", where) == 0
