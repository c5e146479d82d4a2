"""Filters, counts and deletion of jobs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.serialization import encode
from moyin.errors import PromptIdTaken
from moyin.store.artifacts import ArtifactFilter, ArtifactStore, derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore, NewJob
from moyin.store.pruning import Pruner
from moyin.store.sql import Database, now

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
        new = NewJob(
            id=str(uuid.uuid4()), owner="ann", kind="render", spec=spec,
            heads=((StepKind.RENDER, "big" if number == 1 else "default"),),
            metadata=LABELS if number == 2 else {"e": "x"},
            templates=("swatch",) if number == 3 else (),
            has_chosen_id=True,
        )  # fmt: skip
        await jobs.create(new)
        ids.append(new.id)
    picture = Artifact(
        id=derive_step_artifact_id(ids[0], 0, 0), name="a.png", media_type="image/png", size=3,
        sha256=await blobs.put(b"png"),
    )  # fmt: skip
    output = await blobs.put(b"{}")
    result = StepResult(index=0, output=output, artifacts=(picture,))
    await jobs.finish(ids[0], 1, JobStatus.SUCCEEDED, None, results=[result])

    async def find(**conditions: Any) -> list[int]:
        numbers, cursor = [], None
        while True:
            page, cursor = await jobs.list_page(
                "ann", JobFilter(**conditions), limit=1, cursor=cursor
            )
            numbers += [ids.index(job.id) for job in page]
            if cursor is None:
                return numbers

    both = (JobStatus.QUEUED, JobStatus.SUCCEEDED)
    assert await find() == await find(statuses=both) == await find(kind="render") == [3, 2, 1, 0]
    assert await find(pool="big") == [1]
    assert await find(template="swatch") == [3]
    assert await find(metadata=LABELS) == [2]
    assert await find(metadata={"e": "x"}, statuses=both[:1]) == [3, 1]
    assert await find(created_after=now()) == []
    assert await jobs.count("ann", JobFilter(statuses=both[1:])) == 1
    for where in (ArtifactFilter(job_id=ids[0]), ArtifactFilter(media_type="image/*")):
        [listed], _ = await artifacts.list_page("ann", where, limit=9)
        assert (listed.artifact.id, listed.job_id) == (picture.id, ids[0])

    deletion = await jobs.delete("ann", ids)
    assert list(deletion.deleted) == [ids[0]]
    assert set(deletion.still_open) == set(ids[1:])
    assert await find() == [3, 2, 1]
    assert await artifacts.list_page("ann", ArtifactFilter(), limit=9) == ([], None)
    with pytest.raises(PromptIdTaken):
        await jobs.create(
            NewJob(id=ids[0], owner="ann", kind="render", spec=spec, heads=(), has_chosen_id=True)
        )
    pruned = await Pruner(database, blobs).run_deleted(now() + timedelta(hours=1))
    assert pruned.files == 2, "the output and the picture; other jobs have the spec"
    assert await blobs.exists(spec) and not await blobs.exists(picture.sha256)
