from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic_core import to_json

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobError, JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.serialization import encode
from moyin.domain.stored_file import BATCH_INPUT, StoredFile
from moyin.domain.text_batch import BatchDialect, TextBatch
from moyin.errors import ArtifactNotFound, JobNotFound
from moyin.store import blob_references, pruning
from moyin.store.artifacts import ArtifactStore, derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.pruning import Pruner, PruneResult
from moyin.store.schema import files as file_rows
from moyin.store.schema import jobs as rows
from moyin.store.schema import text_batches as batch_rows
from moyin.store.sql import Database
from moyin.store.text_batches import TextBatchStore
from tests.waiting import eventually

NOW = datetime.now(UTC)
BEFORE = NOW - timedelta(days=30)


class PastJobs:
    """Creates jobs and files, and makes them appear older."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.jobs = JobStore(database)
        self.artifacts = ArtifactStore(database)
        self.blobs = BlobStore(f"file://{folder}")
        self.pruner = Pruner(database, self.blobs)
        self._folder = folder

    async def create_job(
        self,
        *,
        days: float | None = 40,
        graph: str = "a",
        picture: bytes = b"picture",
        preview: bytes | None = None,
        status: JobStatus = JobStatus.SUCCEEDED,
        step: Step | None = None,
    ) -> str:
        """Create a job of one step that ended ``days`` ago, or that still runs if ``days`` is None.

        Args:
            graph: a text; jobs with equal texts have equal graphs.
            picture: the content of the job's artifact.
            preview: the content of a file that only ComfyUI's history refers to.
        """
        step = step or Step(kind=StepKind.RENDER, payload={"1": graph})
        spec = JobSpec(kind=step.kind.value, steps=(step,))
        job_id = str(uuid.uuid4())
        await self.jobs.create(
            NewJob(
                id=job_id,
                owner="ada",
                kind=spec.kind,
                spec=await self.blobs.put(encode(spec)),
                heads=((step.kind, "default"),),
            )
        )
        artifact = Artifact(
            id=derive_step_artifact_id(job_id, 0, 0),
            name="a.png",
            media_type="image/png",
            size=len(picture),
            sha256=await self.blobs.put(picture),
        )
        step_output: dict[str, Any] = {"artifacts": [f"artifact:{artifact.id}"]}
        if preview is not None:
            step_output["record"] = {"files": [{"sha256": await self.blobs.put(preview)}]}
        output = await self.blobs.put(to_json(step_output))
        step_result = StepResult(index=0, output=output, artifacts=(artifact,))
        await self.jobs.record_step(job_id, 1, step_result)
        if days is not None:
            error = JobError(code="x", message="y") if status is JobStatus.FAILED else None
            await self.jobs.finish(job_id, 1, status, error)
            await self.set_columns(job_id, finished_at=NOW - timedelta(days=days))
        return job_id

    async def set_columns(self, job_id: str, **values: Any) -> None:
        update_statement = rows.update().where(rows.c.id == job_id).values(values)
        await self.database.write(lambda connection: connection.execute(update_statement))

    async def add_upload(self, content: bytes) -> str:
        digest = await self.blobs.put(content)
        await self.artifacts.add(
            Artifact(
                id=f"art_{uuid.uuid4().hex}", name="u", media_type="x/y", size=1, sha256=digest
            ),
            owner="ada",
        )
        return digest

    def make_files_old(self) -> None:
        for file in self._folder.rglob("*"):
            os.utime(file, (1, 1))

    async def prune(self) -> PruneResult:
        self.make_files_old()
        pruned_total = PruneResult()
        async for result in self.pruner.run(BEFORE):
            pruned_total += result
        return pruned_total

    def list_files(self) -> set[str]:
        return {file.name for file in self._folder.rglob("*") if file.is_file()}

    async def list_job_ids(self) -> set[str]:
        query = sa.select(rows.c.id)
        return set(await self.database.read(lambda c: c.execute(query).scalars().all()))


@pytest.fixture
async def past_jobs(database: Database, tmp_path: Path) -> PastJobs:
    return PastJobs(database, tmp_path / "blobs")


async def test_old_jobs_are_deleted_with_their_files(past_jobs: PastJobs) -> None:
    old_ids = [await past_jobs.create_job(), await past_jobs.create_job(status=JobStatus.FAILED)]
    assert await past_jobs.pruner.count_prunable(BEFORE) == 2
    # Both have the same graph and picture, and each has an output.
    assert len(past_jobs.list_files()) == 4
    pruned_total = await past_jobs.prune()
    assert (pruned_total.jobs, pruned_total.files) == (2, 4)
    assert pruned_total.size > 0
    assert past_jobs.list_files() == set()
    assert await past_jobs.pruner.count_prunable(BEFORE) == 0
    for job_id in old_ids:
        with pytest.raises(JobNotFound):
            await past_jobs.jobs.get("ada", job_id)
        with pytest.raises(ArtifactNotFound):
            await past_jobs.artifacts.get("ada", derive_step_artifact_id(job_id, 0, 0))


async def test_running_and_recent_jobs_stay(past_jobs: PastJobs) -> None:
    young_ids = [
        await past_jobs.create_job(days=None),
        await past_jobs.create_job(days=29),
        await past_jobs.create_job(days=0),
    ]
    files_before = past_jobs.list_files()
    assert await past_jobs.prune() == PruneResult()
    assert (await past_jobs.list_job_ids(), past_jobs.list_files()) == (
        set(young_ids),
        files_before,
    )


async def test_a_file_stays_while_something_refers_to_it(past_jobs: PastJobs) -> None:
    await past_jobs.create_job(graph="same", picture=b"same picture")
    await past_jobs.create_job(graph="another", picture=b"uploaded, too")
    young_id = await past_jobs.create_job(days=1, graph="same", picture=b"same picture")
    upload_sha256 = await past_jobs.add_upload(b"uploaded, too")
    pruned_total = await past_jobs.prune()
    # The outputs of both, and the other graph.
    assert (pruned_total.jobs, pruned_total.files) == (2, 3)
    assert await past_jobs.list_job_ids() == {young_id}
    for artifact in (await past_jobs.jobs.get("ada", young_id)).artifacts:
        assert await past_jobs.blobs.exists(artifact.sha256)
    assert await past_jobs.blobs.exists(upload_sha256)
    spec = (await past_jobs.jobs.get("ada", young_id)).spec
    assert await past_jobs.blobs.exists(spec)


async def test_a_recently_renewed_file_stays(past_jobs: PastJobs) -> None:
    await past_jobs.create_job(picture=b"popular")
    past_jobs.make_files_old()
    renewed_sha256 = await past_jobs.blobs.put(b"popular")
    async for _ in past_jobs.pruner.run(BEFORE):
        pass
    assert await past_jobs.blobs.exists(renewed_sha256)


async def test_the_body_of_a_deferred_request_is_deleted(past_jobs: PastJobs) -> None:
    body_sha256 = await past_jobs.blobs.put(b"a long body")
    payload: dict[str, Any] = {"method": "POST", "path": "/x", "blob": body_sha256}
    await past_jobs.create_job(step=Step(kind=StepKind.HTTP, payload=payload))
    await past_jobs.prune()
    assert past_jobs.list_files() == set()


async def test_other_files_of_a_render_are_deleted(past_jobs: PastJobs) -> None:
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        await past_jobs.create_job(status=status, preview=b"preview of " + status.encode())
    pruned_total = await past_jobs.prune()
    assert (pruned_total.jobs, past_jobs.list_files()) == (2, set())


async def test_files_of_a_long_waiting_job_are_kept(past_jobs: PastJobs) -> None:
    body_sha256 = await past_jobs.blobs.put(b"every night the same")
    payload: dict[str, Any] = {"method": "POST", "path": "/x", "blob": body_sha256}
    step = Step(kind=StepKind.HTTP, payload=payload)
    await past_jobs.create_job(step=step, preview=b"seen")
    waiting_id = await past_jobs.create_job(days=None, step=step)
    recent_id = await past_jobs.create_job(days=1, preview=b"seen")
    for job_id in (waiting_id, recent_id):
        await past_jobs.set_columns(job_id, created_at=NOW - timedelta(days=50))
    assert (await past_jobs.prune()).jobs == 1
    assert await past_jobs.blobs.exists(body_sha256)
    assert await past_jobs.blobs.exists(hashlib.sha256(b"seen").hexdigest())


async def test_an_input_of_a_waiting_job_stays_for_that_job_only(past_jobs: PastJobs) -> None:
    old_id = await past_jobs.create_job(picture=b"of the old one")
    picture_id = derive_step_artifact_id(old_id, 0, 0)
    graph: dict[str, Any] = {"1": {"inputs": {"image": f"artifact:{picture_id}"}}}
    await past_jobs.create_job(days=None, step=Step(kind=StepKind.RENDER, payload=graph))
    assert (await past_jobs.prune()).jobs == 1
    with pytest.raises(ArtifactNotFound):
        await past_jobs.artifacts.get("ada", picture_id)
    stored_picture = await past_jobs.artifacts.get_even_if_deleted("ada", picture_id)
    assert await past_jobs.blobs.get(stored_picture.sha256) == b"of the old one"


async def test_a_job_retried_during_pruning_keeps_its_files(
    past_jobs: PastJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await past_jobs.create_job(graph="same")
    retried_id = await past_jobs.create_job(graph="same", status=JobStatus.FAILED)
    find_unreferenced_digests = past_jobs.pruner._references.find_unreferenced_digests

    async def retry_meanwhile(*arguments: Any) -> set[str]:
        unreferenced_files = await find_unreferenced_digests(*arguments)
        await past_jobs.jobs.reopen("ada", retried_id)
        return unreferenced_files

    monkeypatch.setattr(past_jobs.pruner._references, "find_unreferenced_digests", retry_meanwhile)
    pruned_total = await past_jobs.prune()
    # The output of the other job; both share the graph and the picture.
    assert (pruned_total.jobs, pruned_total.files) == (1, 1)
    job = await past_jobs.jobs.get("ada", retried_id)
    for digest in (job.spec, job.results[0].output, job.artifacts[0].sha256):
        assert await past_jobs.blobs.exists(digest)


async def test_concurrent_pruners_leave_no_files(
    past_jobs: PastJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_references, "CHUNK", 1)
    for _ in range(4):
        await past_jobs.create_job(graph="same", picture=b"same")
    past_jobs.make_files_old()
    other_pruner = Pruner(past_jobs.database, past_jobs.blobs)
    first_run, second_run = other_pruner.run(BEFORE), past_jobs.pruner.run(BEFORE)
    find_unreferenced_digests, results = (
        past_jobs.pruner._references.find_unreferenced_digests,
        [],
    )

    async def prune_meanwhile(*arguments: Any) -> set[str]:
        unreferenced_files = await find_unreferenced_digests(*arguments)
        results.append(await anext(first_run))
        return unreferenced_files

    # Both have seen all four jobs before any is deleted, and each deletes some of them.
    monkeypatch.setattr(past_jobs.pruner._references, "find_unreferenced_digests", prune_meanwhile)
    results += [await anext(second_run), await anext(second_run)]
    for run in (first_run, second_run):
        results += [prune_result async for prune_result in run]
    assert [prune_result.jobs for prune_result in results] == [1, 0, 1, 0, 1, 1, 0, 0]
    assert sum(prune_result.files for prune_result in results) == 6
    assert (await past_jobs.list_job_ids(), past_jobs.list_files()) == (set(), set())


async def test_many_jobs_are_deleted_in_chunks(
    past_jobs: PastJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "JOBS_PER_SCAN", 5)
    monkeypatch.setattr(blob_references, "CHUNK", 2)
    monkeypatch.setattr(blob_references, "PAGE", 3)
    for index in range(8):
        await past_jobs.create_job(graph=str(index % 2), picture=str(index % 3).encode())
    young_id = await past_jobs.create_job(days=1, graph="0", picture=b"1")
    past_jobs.make_files_old()
    job_counts = [result.jobs async for result in past_jobs.pruner.run(BEFORE)]
    assert job_counts == [2, 2, 1, 2, 1]
    assert await past_jobs.list_job_ids() == {young_id}
    assert len(past_jobs.list_files()) == 3, "its own"


class SlowPruner(Pruner):
    """A pruner that runs until the test releases it."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        super().__init__(database, blobs)
        self.has_begun, self.may_proceed = asyncio.Event(), asyncio.Event()

    async def run(self, cutoff: datetime) -> AsyncIterator[PruneResult]:
        self.has_begun.set()
        await self.may_proceed.wait()
        yield PruneResult()


class CountingDatabase(Database):
    """Counts in ``times`` the attempts to take an advisory lock."""

    times = 0

    def advisory_lock(self, name: str) -> Any:
        self.times += 1
        return super().advisory_lock(name)


async def test_deleted_files_are_pruned_while_jobs_are_kept(
    past_jobs: PastJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAUSE_SECONDS", 0.001)
    batches = PastBatches(past_jobs)
    kept_sha256 = await batches.add_file("kept", b"kept")
    deleted_sha256 = await batches.add_file("deleted", b"deleted", deleted_days=1.1)
    new_sha256 = await batches.add_file("new", b"new", deleted_days=0.9)
    preview_sha256 = await batches.add_file("preview", b"preview", deleted_days=2)
    job_id = await past_jobs.create_job(preview=b"preview")
    await past_jobs.set_columns(job_id, created_at=NOW - timedelta(days=41))
    past_jobs.make_files_old()

    async def is_gone() -> bool:
        return not await past_jobs.blobs.exists(deleted_sha256)

    pruning_task = asyncio.create_task(past_jobs.pruner.keep_pruning(0))
    await eventually(is_gone)
    pruning_task.cancel()
    await asyncio.gather(pruning_task, return_exceptions=True)
    assert await batches.list_file_ids() == ["kept", "new"]
    for digest in (kept_sha256, new_sha256, preview_sha256):
        assert await past_jobs.blobs.exists(digest)
    assert await past_jobs.list_job_ids() == {job_id}


async def test_only_one_replica_prunes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAUSE_SECONDS", 0.001)
    databases = [CountingDatabase(f"sqlite:///{tmp_path / 'moyin.db'}") for _ in range(2)]
    first_pruner, other_pruner = (
        SlowPruner(database, BlobStore(f"file://{tmp_path}")) for database in databases
    )
    async with asyncio.timeout(10):
        pruning_tasks = [asyncio.create_task(first_pruner.keep_pruning(30))]
        await first_pruner.has_begun.wait()
        pruning_tasks.append(asyncio.create_task(other_pruner.keep_pruning(30)))
        while databases[1].times < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not other_pruner.has_begun.is_set()
        pruning_tasks[0].cancel()
        await other_pruner.has_begun.wait()
    pruning_tasks[1].cancel()
    await asyncio.gather(*pruning_tasks, return_exceptions=True)
    for database in databases:
        await database.close()


class PastBatches:
    """Creates files and ended batches, and makes them appear older."""

    def __init__(self, past_jobs: PastJobs) -> None:
        self.past = past_jobs
        self.files = FileStore(past_jobs.database)
        self.batches = TextBatchStore(past_jobs.database)

    async def add_file(
        self, file_id: str, content: bytes, *, deleted_days: float | None = None
    ) -> str:
        file = StoredFile(
            id=file_id,
            owner="ada",
            purpose=BATCH_INPUT,
            filename=file_id,
            media_type="application/jsonl",
            size=len(content),
            sha256=await self.past.blobs.put(content),
            created_at=NOW - timedelta(days=50),
        )
        await self.files.add(file)
        if deleted_days is not None:
            deleted_at = NOW - timedelta(days=deleted_days)
            update_statement = (
                file_rows.update().where(file_rows.c.id == file_id).values(deleted_at=deleted_at)
            )
            await self.past.database.execute(update_statement)
        return file.sha256

    async def add_batch(self, batch_id: str, input_file_id: str, **values: Any) -> None:
        created_at = NOW - timedelta(days=41)
        batch = TextBatch(
            id=batch_id,
            owner="ada",
            dialect=BatchDialect.OPENAI,
            endpoint="/v1/embeddings",
            input_file_id=input_file_id,
            created_at=created_at,
            expires_at=created_at,
        )
        await self.batches.create(batch)
        if values:
            update_statement = batch_rows.update().where(batch_rows.c.id == batch_id).values(values)
            await self.past.database.execute(update_statement)

    async def list_file_ids(self) -> list[str]:
        return sorted(await self.past.database.fetch_values(sa.select(file_rows.c.id)))


async def test_old_and_deleted_batches_are_pruned_with_their_results_and_files(
    past_jobs: PastJobs,
) -> None:
    batches = PastBatches(past_jobs)
    recently, long_ago = (NOW - timedelta(days=days) for days in (20, 40))
    output_sha256 = await batches.add_file("output", b"results")
    input_sha256 = await batches.add_file("input", b"input")
    shared_sha256 = await batches.add_file("gone", b"picture", deleted_days=40)
    repeated_sha256 = await batches.add_file("gone-too", b"input", deleted_days=40)
    unused_sha256 = await batches.add_file("deleted", b"unused", deleted_days=40)
    new_sha256 = await batches.add_file("new", b"new", deleted_days=20)
    open_sha256 = await batches.add_file("open-input", b"open", deleted_days=40)
    await past_jobs.create_job(days=10, picture=b"picture")
    ended_values = {"status": "completed", "ended_at": long_ago, "output_file_id": "output"}
    await batches.add_batch("batch_old", "input", **ended_values)
    await batches.add_batch("batch_new", "input", status="cancelled", ended_at=recently)
    await batches.add_batch("batch_open", "open-input")
    assert await past_jobs.pruner.count_prunable_batches(BEFORE) == 1
    pruned_total = await past_jobs.prune()
    assert (pruned_total.batches, pruned_total.files) == (1, 2)
    assert await batches.list_file_ids() == ["input", "new", "open-input"]
    assert [await past_jobs.blobs.exists(b) for b in (output_sha256, unused_sha256)] == [
        False,
        False,
    ]
    for digest in (input_sha256, shared_sha256, repeated_sha256, new_sha256, open_sha256):
        assert await past_jobs.blobs.exists(digest)
    assert await batches.batches.find("batch_old") is None
    assert await batches.batches.find("batch_new") is not None
