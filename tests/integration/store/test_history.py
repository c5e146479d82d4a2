"""Tests filters, counts and deletion of jobs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.serialization import encode
from moyin.errors import ArtifactNotFound, PromptIdTaken
from moyin.store import job_filter, pages, schema
from moyin.store.artifacts import ArtifactFilter, ArtifactStore, derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.job_deletion import delete_ended_jobs
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore, NewJob
from moyin.store.pruning import Pruner
from moyin.store.sql import Database, migrate, now
from tests.integration.access.fixtures import Postgres

LABELS = {'a"b': "c\\d", "e": "🎈"}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def test_jobs_are_filtered_counted_and_deleted(database: Database, tmp_path: Path) -> None:
    jobs, artifacts = JobStore(database), ArtifactStore(database)
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    steps = (Step(kind=StepKind.RENDER, payload={}),)
    spec = await blobs.put(encode(JobSpec(kind="render", steps=steps)))
    ids = []
    for number in range(4):
        new_job = NewJob(
            id=str(uuid.uuid4()), owner="ann", kind="render", spec=spec,
            heads=((StepKind.RENDER, "big" if number == 1 else "default"),),
            metadata=LABELS if number == 2 else {"e": "x"},
            templates=("swatch",) if number in (2, 3) else (),
            user="user_1" if number == 2 else None,
            text="赤い狐 red fox" if number in (0, 2) else "car",
            has_chosen_id=True,
        )  # fmt: skip
        await jobs.create(new_job)
        ids.append(new_job.id)
    picture = Artifact(
        id=derive_step_artifact_id(ids[0], 0, 0), name="a.png", media_type="image/png", size=3,
        sha256=await blobs.put(b"png"),
    )  # fmt: skip
    output = await blobs.put(b"{}")
    result = StepResult(index=0, output=output, artifacts=(picture,))
    await jobs.finish(ids[0], 1, JobStatus.SUCCEEDED, None, results=[result])

    async def list_numbers(**conditions: Any) -> list[int]:
        numbers, cursor = [], None
        while True:
            page, cursor = await jobs.list_page(
                "ann", JobFilter(**conditions), limit=1, cursor=cursor
            )
            numbers += [ids.index(job.id) for job in page]
            if cursor is None:
                return numbers

    both_statuses = (JobStatus.QUEUED, JobStatus.SUCCEEDED)
    assert (
        await list_numbers()
        == await list_numbers(statuses=both_statuses)
        == await list_numbers(kind="render")
        == [3, 2, 1, 0]
    )
    assert await list_numbers(pool="big") == [1]
    assert await list_numbers(template="swatch") == [3, 2]
    assert await list_numbers(metadata=LABELS) == [2]
    assert await list_numbers(metadata={"e": "x"}, statuses=both_statuses[:1]) == [3, 1]
    assert await list_numbers(search="fox RED") == await list_numbers(search="赤い") == [2, 0]
    assert await list_numbers(search="狐", metadata=LABELS) == [2]
    assert await list_numbers(search="fox car") == []
    assert await list_numbers(created_after=now()) == []
    assert await jobs.count("ann", JobFilter(statuses=both_statuses[1:])) == 1
    for artifact_filter in (ArtifactFilter(job_id=ids[0]), ArtifactFilter(media_type="image/*")):
        [listed_artifact], _ = await artifacts.list_page("ann", artifact_filter, limit=9)
        assert (listed_artifact.artifact.id, listed_artifact.job_id) == (picture.id, ids[0])

    second_picture = Artifact(
        id=derive_step_artifact_id(ids[2], 0, 0), name="b.png", media_type="image/png", size=3,
        sha256=picture.sha256,
    )  # fmt: skip
    await artifacts.add(second_picture, owner="ann", job_id=ids[2])
    await artifacts.set_favourite("ann", second_picture.id, True)
    for artifact_filter in (
        ArtifactFilter(metadata=LABELS, media_type="image/*"),
        ArtifactFilter(user_id="user_1"),
        ArtifactFilter(favourite=True),
        ArtifactFilter(favourite=True, user_id="user_1", template="swatch"),
    ):
        [listed_artifact], _ = await artifacts.list_page("ann", artifact_filter, limit=9)
        assert (listed_artifact.artifact.id, listed_artifact.favourite) == (second_picture.id, True)
    for artifact_filter in (ArtifactFilter(metadata={"e": "y"}), ArtifactFilter(user_id="user_2")):
        assert await artifacts.list_page("ann", artifact_filter, limit=9) == ([], None)
    [listed_artifact], _ = await artifacts.list_page(
        "ann", ArtifactFilter(favourite=False), limit=9
    )
    assert listed_artifact.artifact.id == picture.id
    # The table says that it is another's job: what it has counts for its owner alone.
    await artifacts.add(replace(second_picture, id="art_x"), owner="eve", job_id=ids[2])
    assert await artifacts.list_page("eve", ArtifactFilter(user_id="user_1"), limit=9) == ([], None)
    with pytest.raises(ArtifactNotFound):
        await artifacts.set_favourite("bob", second_picture.id, False)
    await database.write(
        lambda connection: connection.execute(
            schema.artifacts.delete().where(schema.artifacts.c.id.in_([second_picture.id, "art_x"]))
        )
    )

    deletion = await jobs.delete("ann", ids)
    assert list(deletion.deleted) == [ids[0]]
    assert set(deletion.still_open) == set(ids[1:])
    assert await list_numbers() == [3, 2, 1]
    assert await list_numbers(search="fox") == [2]
    assert await artifacts.list_page("ann", ArtifactFilter(), limit=9) == ([], None)
    with pytest.raises(PromptIdTaken):
        await jobs.create(
            NewJob(id=ids[0], owner="ann", kind="render", spec=spec, heads=(), has_chosen_id=True)
        )
    pruned = await Pruner(database, blobs).prune_deleted_files(now() + timedelta(hours=1))
    assert pruned.files == 2, "the output and the picture; other jobs have the spec"
    assert await blobs.exists(spec) and not await blobs.exists(picture.sha256)


async def test_a_rare_word_is_found_among_many_jobs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 5)
    jobs = JobStore(database)
    texts = ["needle", *("hay" for _ in range(30))]
    ids = []
    for text in texts:
        new_job = NewJob(
            id=str(uuid.uuid4()), owner="ann", kind="chat", spec="0" * 64, heads=(), text=text
        )
        await jobs.create(new_job)
        ids.append(new_job.id)
    page, cursor = await jobs.list_page("ann", JobFilter(search="needle"))
    assert ([job.id for job in page], cursor) == ([ids[0]], None)
    # More matches than are sorted: the pages compare rows.
    monkeypatch.setattr(job_filter, "MAX_SCANNED", 10)
    found_ids, cursor = [], None
    while True:
        page, cursor = await jobs.list_page("ann", JobFilter(search="hay"), limit=7, cursor=cursor)
        found_ids += [job.id for job in page]
        if cursor is None:
            break
    assert found_ids == ids[:0:-1]


async def test_a_page_and_its_cursor_are_read_in_one_statement(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting jobs while a page is read must not make the next page skip other jobs."""
    monkeypatch.setattr(pages, "MAX_SCANNED", 4)
    jobs, ids = JobStore(database), []
    for number in range(12):
        pool = "rare" if number == 7 else "default"
        new_job = NewJob(
            id=str(uuid.uuid4()), owner="ann", kind="render", spec="0" * 64,
            heads=((StepKind.RENDER, pool),),
        )  # fmt: skip
        await jobs.create(new_job)
        await jobs.finish(new_job.id, 1, JobStatus.SUCCEEDED, None)
        ids.append(new_job.id)

    async def delete_newest() -> None:
        other_database = Database(database_url)
        assert len((await JobStore(other_database).delete("ann", ids[-3:])).deleted) == 3
        await other_database.close()

    def delete_between_queries(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "row_number" in statement and deletion_thread.ident is None:
            deletion_thread.start()
            deletion_thread.join()

    deletion_thread = threading.Thread(target=lambda: asyncio.run(delete_newest()))
    job_filter = JobFilter(pool="rare")
    sa.event.listen(sa.Engine, "after_cursor_execute", delete_between_queries)
    try:
        page, cursor = await jobs.list_page("ann", job_filter)
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", delete_between_queries)
    assert page == [] and cursor is not None and not deletion_thread.is_alive()
    assert len((await jobs.list_page("ann"))[0]) == 9, "the deletion came between the statements"
    page, _ = await jobs.list_page("ann", job_filter, cursor=cursor)
    assert [job.id for job in page] == [ids[7]]


async def test_an_id_that_is_being_deleted_stays_taken(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database())
    await asyncio.to_thread(migrate, url)
    database, other_database = Database(url), Database(url)
    jobs = JobStore(database)
    new_job = NewJob(
        id=str(uuid.uuid4()), owner="ann", kind="chat", spec="0" * 64, heads=(), has_chosen_id=True
    )
    await jobs.create(new_job)
    await jobs.finish(new_job.id, 1, JobStatus.SUCCEEDED, None)
    async with other_database.writing() as transaction:
        deletion = await transaction.run_sync(lambda c: delete_ended_jobs(c, "ann", [new_job.id]))
        assert list(deletion.deleted) == [new_job.id]
        creation_task = asyncio.create_task(jobs.create(new_job))
        lock_query = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while not (await transaction.execute(lock_query)).scalar_one():
            assert not creation_task.done()
            await asyncio.sleep(0.05)
    with pytest.raises(PromptIdTaken):
        await creation_task
    await database.close()
    await other_database.close()
