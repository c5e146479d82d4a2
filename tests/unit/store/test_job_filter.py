"""Tests filtered lists of jobs, and their pagination."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from moyin.domain.job import JobStatus, StepKind
from moyin.store import job_filter, pages
from moyin.store.job_filter import JobFilter
from moyin.store.job_words import find_job_ids, find_words, join_words
from moyin.store.jobs import JobStore, NewJob
from moyin.store.schema import job_texts
from moyin.store.schema import jobs as rows
from moyin.store.sql import Database

START = datetime(2026, 1, 1, tzinfo=UTC)


class NumberedJobs:
    """Creates jobs, one a minute from ``START`` on, and numbers them in their metadata ``n``."""

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
        text: str = "",
    ) -> str:
        """Create a job with this status and return its metadata ``n``."""
        number = str(self._count)
        new_job = NewJob(
            id=str(uuid.uuid4()),
            owner=owner,
            kind=kind,
            spec="0" * 64,
            heads=heads,
            metadata={"n": number, **(metadata or {})},
            templates=templates,
            text=text,
        )
        await self.store.create(new_job)
        created_at = START + timedelta(minutes=self._count)
        update_statement = rows.update().where(rows.c.id == new_job.id)
        columns = {"status": status.value, "created_at": created_at}
        await self._database.write(lambda c: c.execute(update_statement.values(columns)))
        self._count += 1
        return number

    async def find(self, owner: str = "ada", *, limit: int = 50, **conditions: Any) -> list[str]:
        """Return the metadata ``n`` of all matching jobs, read in pages of ``limit``.

        Args:
            conditions: the attributes of the `JobFilter`.
        """
        numbers, cursor = [], None
        while True:
            page, cursor = await self.store.list_page(
                owner, JobFilter(**conditions), limit=limit, cursor=cursor
            )
            numbers += [job.metadata["n"] for job in page]
            if cursor is None:
                return numbers


@pytest.fixture
def jobs(database: Database) -> NumberedJobs:
    return NumberedJobs(database)


async def test_several_statuses_are_merged_by_time(jobs: NumberedJobs) -> None:
    statuses = [JobStatus.FAILED, JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED]
    for status in statuses:
        await jobs.add(status)
    await jobs.add(JobStatus.QUEUED, kind="chat")
    two_statuses = (JobStatus.QUEUED, JobStatus.FAILED)
    assert await jobs.find(statuses=two_statuses) == ["4", "3", "1", "0"]
    assert await jobs.find(statuses=two_statuses, limit=1) == ["4", "3", "1", "0"]
    assert await jobs.find(statuses=(JobStatus.QUEUED, JobStatus.QUEUED)) == ["4", "1"]
    assert await jobs.find(statuses=two_statuses, kind="render") == ["3", "1", "0"]
    assert await jobs.find(kind="chat") == ["4"]
    assert await jobs.find(statuses=(JobStatus.CANCELLED,)) == []


async def test_pool_and_template_filters_match_any_step(jobs: NumberedJobs) -> None:
    two_heads = ((StepKind.RENDER, "big"), (StepKind.RENDER, "default"))
    await jobs.add(heads=two_heads, templates=("swatch", "poster_a"))
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
async def test_metadata_filter_matches_exactly(jobs: NumberedJobs, key: str, value: str) -> None:
    await jobs.add(metadata={key: value})
    await jobs.add(metadata={"other": value})
    await jobs.add(metadata={key: value + "x"})
    assert await jobs.find(metadata={key: value}) == ["0"]
    assert await jobs.find(metadata={key: value, "n": "0"}) == ["0"]
    assert await jobs.find(metadata={key: value, "n": "1"}) == []


async def test_time_bounds_include_the_start_and_exclude_the_end(jobs: NumberedJobs) -> None:
    for _ in range(4):
        await jobs.add()
    time_bounds: dict[str, Any] = {
        "created_after": START + timedelta(minutes=1),
        "created_before": START + timedelta(minutes=3),
    }
    assert await jobs.find(**time_bounds) == ["2", "1"]
    assert await jobs.find(**time_bounds, pool="default") == ["2", "1"]


async def test_filters_find_no_jobs_of_other_owners(jobs: NumberedJobs) -> None:
    await jobs.add(templates=("swatch",), text="fox")
    filters: tuple[dict[str, Any], ...] = (
        {},
        {"kind": "render"},
        {"pool": "default"},
        {"template": "swatch"},
        {"metadata": {"n": "0"}},
        {"search": "fox"},
    )
    for conditions in filters:
        assert await jobs.find("bob", **conditions) == []
        assert await jobs.find("ada", **conditions) == ["0"]


@pytest.mark.parametrize(
    "conditions",
    [
        {"statuses": (JobStatus.SUCCEEDED, JobStatus.FAILED)},
        {"pool": "default"},
        {"search": "fox"},
    ],
)
async def test_new_jobs_do_not_change_later_pages(jobs: NumberedJobs, conditions: Any) -> None:
    for _ in range(5):
        await jobs.add(text="fox")
    job_filter = JobFilter(**conditions)
    first_page, cursor = await jobs.store.list_page("ada", job_filter, limit=2)
    await jobs.add(text="fox")
    second_page, _ = await jobs.store.list_page("ada", job_filter, limit=9, cursor=cursor)
    assert [job.metadata["n"] for job in (*first_page, *second_page)] == ["4", "3", "2", "1", "0"]


async def test_a_page_reads_a_bounded_number_of_rows(
    jobs: NumberedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 3)
    rare_number = await jobs.add(heads=((StepKind.RENDER, "rare"),))
    for _ in range(7):
        await jobs.add()
    job_filter = JobFilter(pool="rare")
    page, cursor = await jobs.store.list_page("ada", job_filter, limit=2)
    assert page == [] and cursor is not None
    assert await jobs.find(pool="rare", limit=2) == [rare_number]
    # Pages that are full before they have read all rows continue after their last job.
    assert await jobs.find(pool="default", limit=2) == ["7", "6", "5", "4", "3", "2", "1"]


async def test_ids_and_counts_match_the_pages(jobs: NumberedJobs) -> None:
    for status in (JobStatus.FAILED, JobStatus.QUEUED, JobStatus.FAILED):
        await jobs.add(status)
    job_filter = JobFilter(statuses=(JobStatus.FAILED,))
    listed_jobs, _ = await jobs.store.list_page("ada", job_filter)
    page = await jobs.store.list_ids("ada", job_filter, limit=9, cursor=None)
    assert list(page.ids) == [job.id for job in listed_jobs]
    assert await jobs.store.count("ada", job_filter) == 2
    assert await jobs.store.count("bob", job_filter) == 0


async def test_all_words_of_a_search_must_occur(jobs: NumberedJobs) -> None:
    await jobs.add(text="A RED fox, long_hair; \uff26\uff35\uff2c\uff2c")
    await jobs.add(text="a red car")
    await jobs.add(text="redder")
    await jobs.add()
    assert await jobs.find(search="red") == ["1", "0"]
    assert await jobs.find(search="Fox rEd") == await jobs.find(search="hair") == ["0"]
    assert await jobs.find(search="full") == ["0"], "wide letters are letters"
    assert await jobs.find(search="red blue") == await jobs.find(search="re") == []


async def test_japanese_words_are_found_inside_a_sentence(jobs: NumberedJobs) -> None:
    await jobs.add(text="夕焼けの海と少女、桜")
    await jobs.add(text="海の少年")
    assert await jobs.find(search="海") == ["1", "0"]
    assert await jobs.find(search="少女") == await jobs.find(search="夕焼けの海") == ["0"]
    assert await jobs.find(search="桜 海") == ["0"]
    assert await jobs.find(search="女海") == []


@pytest.mark.parametrize(
    "search",
    ["fox OR car", "fox NOT car", "fo*", 'a" OR "b', "words: fox", "%", "_o_", "fox') --", "a\0"],
)
async def test_a_search_has_no_operators(jobs: NumberedJobs, search: str) -> None:
    await jobs.add(text="car")
    await jobs.add(text=search)
    expected_numbers = [] if search in ("%",) else ["1"]
    assert (await jobs.find(search=search) if find_words(search) else []) == expected_numbers


@pytest.mark.parametrize("index_limit", [0, 3, 2_000])
async def test_searches_are_paged_and_combined(
    jobs: NumberedJobs, monkeypatch: pytest.MonkeyPatch, index_limit: int
) -> None:
    """Searches give the same results with the index and without it.

    With more than ``index_limit`` matches, the index is not used and the rows are searched.
    """
    monkeypatch.setattr(job_filter, "MAX_SCANNED", index_limit)
    monkeypatch.setattr(pages, "MAX_SCANNED", 3)
    for number in range(12):
        status = JobStatus.FAILED if number in (2, 3) else JobStatus.SUCCEEDED
        job_text = "rare word" if number in (0, 2, 9) else "other word"
        await jobs.add(status, text=job_text, kind="chat" if number == 9 else "render")
    await jobs.add(owner="bob", text="rare word")
    for limit in (1, 2, 50):
        assert await jobs.find(search="rare", limit=limit) == ["9", "2", "0"]
        assert await jobs.find(search="rare", kind="render", limit=limit) == ["2", "0"]
        assert await jobs.find(search="rare", metadata={"n": "9"}, limit=limit) == ["9"]
        word_and_status: dict[str, Any] = {
            "search": "word",
            "statuses": (JobStatus.FAILED,),
            "limit": limit,
        }
        assert await jobs.find(**word_and_status) == ["3", "2"]
        early_conditions: dict[str, Any] = {"created_before": START + timedelta(minutes=9)}
        assert await jobs.find(search="rare", **early_conditions, limit=limit) == ["2", "0"]
        assert await jobs.find("bob", search="rare", limit=limit) == ["12"]
        assert await jobs.find("eve", search="rare", limit=limit) == []


async def test_a_rare_word_is_found_on_the_first_page(
    jobs: NumberedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 3)
    await jobs.add(text="needle")
    for _ in range(9):
        await jobs.add(text="hay")
    page, cursor = await jobs.store.list_page("ada", JobFilter(search="needle"))
    assert ([job.metadata["n"] for job in page], cursor) == (["0"], None)


async def test_searches_for_many_words_compare_fewer_rows(
    jobs: NumberedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 12)
    monkeypatch.setattr(job_filter, "MAX_SCANNED", 0)
    for _ in range(7):
        await jobs.add(text="one two three")
    page, _ = await jobs.store.list_page("ada", JobFilter(search="one"))
    assert len(page) == 6
    page, _ = await jobs.store.list_page("ada", JobFilter(search="one two three"))
    assert len(page) == 3
    many_words = "one two three " * 2 + "one two three four five six seven"
    assert await jobs.find(search=many_words) == []
    assert await jobs.find(search="one two three") == [str(n) for n in range(6, -1, -1)]


async def test_words_are_deleted_with_their_job(jobs: NumberedJobs, database: Database) -> None:
    for _ in range(2):
        await jobs.add(text="secret")
    [job, kept_job], _ = await jobs.store.list_page("ada")
    await jobs.store.delete("ada", [job.id])

    def read_words(connection: sa.Connection) -> tuple[Any, ...]:
        job_ids = connection.execute(sa.select(job_texts.c.job_id)).scalars().all()
        # Raises an error if the index and the table do not agree.
        check_statement = "INSERT INTO job_words(job_words, rank) VALUES ('integrity-check', 1)"
        connection.execute(sa.text(check_statement))
        return tuple(job_ids), find_job_ids(connection, "ada", "secret", 9)

    assert await database.write(read_words) == ((kept_job.id,), [kept_job.id])


def test_search_words_are_bounded_and_differ_between_owners() -> None:
    words = join_words("ada", "海" * 2_000 + " end")
    assert "end" not in words and len(words.split()) == 2
    long_text_words = join_words("ada", "x" * 5_000)
    assert len(long_text_words.strip()) == 6 + 64
    assert not set(join_words("ada", "a b").split()) & set(join_words("bob", "a b").split())
    assert join_words("ada", "--- \0 \ud800") == ""
