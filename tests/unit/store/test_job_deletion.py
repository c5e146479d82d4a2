"""Tests that owners can delete ended jobs, and that the files of deleted jobs are deleted later."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.prompt import ComfyFileName
from moyin.domain.serialization import encode
from moyin.errors import ArtifactNotFound, JobNotFound, PromptIdTaken
from moyin.store import pages
from moyin.store.artifacts import ArtifactFilter, ArtifactStore, derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.pruning import Pruner, PruneResult
from moyin.store.schema import artifacts
from moyin.store.sql import Database, now

LATER = timedelta(hours=1)


class Rig:
    """Creates jobs with files, deletes them, and prunes what was deleted."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.jobs = JobStore(database)
        self.artifacts = ArtifactStore(database)
        self.uploads = UploadStore(database)
        self.blobs = BlobStore(f"file://{folder}")
        self.pruner = Pruner(database, self.blobs)
        self.folder = folder

    async def create_job(
        self,
        *,
        owner: str = "ada",
        picture: bytes = b"picture",
        graph: str = "a",
        is_open: bool = False,
    ) -> NewJob:
        """Create a job of one render with a picture, which has ended unless ``is_open``.

        Args:
            picture: the content of the picture.
            graph: a text; jobs with equal texts have equal graphs.
        """
        step = Step(kind=StepKind.RENDER, payload={"1": graph})
        new_job = NewJob(
            id=str(uuid.uuid4()),
            owner=owner,
            kind="render",
            spec=await self.blobs.put(encode(JobSpec(kind="render", steps=(step,)))),
            heads=((StepKind.RENDER, "default"),),
            idempotency_key=f"key of {graph}",
            fingerprint="f",
            has_chosen_id=True,
        )
        await self.jobs.create(new_job)
        artifact = await self.make_artifact(picture, derive_step_artifact_id(new_job.id, 0, 0))
        output = await self.blobs.put(b'{"of": "%s"}' % new_job.id.encode())
        step_result = StepResult(index=0, output=output, artifacts=(artifact,))
        await self.jobs.record_step(new_job.id, 1, step_result)
        if not is_open:
            await self.jobs.finish(new_job.id, 1, JobStatus.SUCCEEDED, None)
        return new_job

    async def make_artifact(self, content: bytes, artifact_id: str | None = None) -> Artifact:
        return Artifact(
            id=artifact_id or f"art_{uuid.uuid4().hex}",
            name="a.png",
            media_type="image/png",
            size=len(content),
            sha256=await self.blobs.put(content),
        )

    async def add_upload(self, content: bytes) -> Artifact:
        artifact = await self.make_artifact(content)
        await self.artifacts.add(artifact, owner="ada")
        return artifact

    async def prune(self) -> PruneResult:
        """Prune everything that was deleted so far, as if all files were old enough."""
        prune_before = now() + LATER
        return await self.pruner.prune_deleted_files(prune_before)

    def list_files(self) -> set[str]:
        return {file.name for file in self.folder.rglob("*") if file.is_file()}


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    return Rig(database, tmp_path / "blobs")


async def test_only_ended_jobs_of_the_owner_are_deleted(rig: Rig) -> None:
    ended_job, running_job = await rig.create_job(), await rig.create_job(graph="b", is_open=True)
    others_job = await rig.create_job(owner="bob")
    job_ids = [ended_job.id, running_job.id, others_job.id, str(uuid.uuid4())]
    deletion = await rig.jobs.delete("ada", job_ids)
    assert (list(deletion.deleted), list(deletion.still_open)) == ([ended_job.id], [running_job.id])
    with pytest.raises(JobNotFound):
        await rig.jobs.get("ada", ended_job.id)
    for kept_job in (running_job, others_job):
        assert (await rig.jobs.get(kept_job.owner, kept_job.id)).id == kept_job.id
        await rig.artifacts.get(kept_job.owner, derive_step_artifact_id(kept_job.id, 0, 0))
    assert list((await rig.jobs.delete("ada", [ended_job.id])).deleted) == []


async def test_artifacts_of_a_deleted_job_are_hidden_at_once(rig: Rig) -> None:
    job = await rig.create_job()
    await rig.jobs.delete("ada", [job.id])
    artifact_id = derive_step_artifact_id(job.id, 0, 0)
    with pytest.raises(ArtifactNotFound):
        await rig.artifacts.get("ada", artifact_id)
    listed_artifacts, _ = await rig.artifacts.list_page("ada", ArtifactFilter(), limit=9)
    assert listed_artifacts == []
    # A job that was submitted before still reads it.
    assert (await rig.artifacts.get_even_if_deleted("ada", artifact_id)).size == 7


async def test_id_of_a_deleted_job_stays_taken_but_its_idempotency_key_becomes_free(
    rig: Rig,
) -> None:
    job = await rig.create_job()
    await rig.jobs.delete("ada", [job.id])
    with pytest.raises(PromptIdTaken):
        await rig.jobs.create(job)
    await rig.prune()
    with pytest.raises(PromptIdTaken):
        await rig.jobs.create(replace(job, owner="bob", idempotency_key=None))
    new_job, is_new = await rig.jobs.create(replace(job, id=str(uuid.uuid4()), fingerprint="g"))
    assert is_new and new_job.artifacts == ()


async def test_id_of_a_deleted_job_becomes_free_when_jobs_of_that_age_are_pruned(rig: Rig) -> None:
    job = await rig.create_job()
    await rig.jobs.delete("ada", [job.id])
    await rig.prune()
    for prune_before in (now() - LATER, now() + LATER):
        with pytest.raises(PromptIdTaken):
            await rig.jobs.create(job)
        async for _ in rig.pruner.run(prune_before):
            pass
    _, is_new = await rig.jobs.create(job)
    assert is_new


async def test_files_are_deleted_with_their_last_reference(rig: Rig) -> None:
    first_job = await rig.create_job(picture=b"same", graph="a")
    second_job = await rig.create_job(picture=b"same", graph="b")
    await rig.jobs.delete("ada", [first_job.id])
    # The first job's own graph and output; the second job shows the same picture.
    assert (await rig.prune()).files == 2
    [artifact] = (await rig.jobs.get("ada", second_job.id)).artifacts
    assert await rig.blobs.get(artifact.sha256) == b"same"
    await rig.jobs.delete("ada", [second_job.id])
    assert (await rig.prune()).files == 3
    assert rig.list_files() == set()
    assert await rig.prune() == PruneResult()


async def test_an_upload_with_the_same_content_keeps_the_file(rig: Rig) -> None:
    job, upload = await rig.create_job(picture=b"same"), await rig.add_upload(b"same")
    await rig.jobs.delete("ada", [job.id])
    await rig.prune()
    assert rig.list_files() == {upload.sha256}
    await rig.artifacts.delete("ada", upload.id)
    await rig.prune()
    assert rig.list_files() == set()


async def test_files_of_an_open_job_are_kept_until_it_ends(rig: Rig) -> None:
    job, upload = await rig.create_job(picture=b"first"), await rig.add_upload(b"mask")
    output_id = derive_step_artifact_id(job.id, 0, 0)
    using_job = await rig.create_job(
        picture=b"second", graph=f"artifact:{output_id} {upload.id}", is_open=True
    )
    await rig.jobs.delete("ada", [job.id])
    await rig.artifacts.delete("ada", upload.id)
    await rig.prune()
    for artifact_id in (output_id, upload.id):
        artifact = await rig.artifacts.get_even_if_deleted("ada", artifact_id)
        assert await rig.blobs.exists(artifact.sha256)
    await rig.jobs.finish(using_job.id, 1, JobStatus.SUCCEEDED, None)
    await rig.prune()
    for artifact_id in (output_id, upload.id):
        with pytest.raises(ArtifactNotFound):
            await rig.artifacts.get_even_if_deleted("ada", artifact_id)
    assert len(rig.list_files()) == 3, "spec, output and picture of the job that used them"


async def test_recently_deleted_files_stay(rig: Rig) -> None:
    job = await rig.create_job()
    files_before = rig.list_files()
    await rig.jobs.delete("ada", [job.id])
    assert await rig.pruner.prune_deleted_files(now() - LATER) == PruneResult()
    assert rig.list_files() == files_before


async def test_the_name_of_a_deleted_upload_is_free(rig: Rig) -> None:
    name = ComfyFileName(filename="a.png", subfolder="", type="input")
    first_artifact, second_artifact = (
        await rig.make_artifact(b"first"),
        await rig.make_artifact(b"second"),
    )
    await rig.uploads.put("ada", name, first_artifact, may_replace=False)
    await rig.artifacts.delete("ada", first_artifact.id)
    assert await rig.uploads.find("ada", [name]) == {}
    assert (
        await rig.uploads.put("ada", name, second_artifact, may_replace=False)
    ).id == second_artifact.id
    assert (await rig.uploads.find("ada", [name]))[name].id == second_artifact.id


async def test_artifacts_are_listed_by_job_and_type(rig: Rig) -> None:
    job, upload = await rig.create_job(), await rig.add_upload(b"x")
    video = replace(await rig.make_artifact(b"film"), media_type="video/mp4")
    await rig.artifacts.add(video, owner="ada")

    async def list_ids(owner: str = "ada", limit: int = 9, **conditions: Any) -> list[str]:
        artifact_ids, cursor = [], None
        while True:
            page, cursor = await rig.artifacts.list_page(
                owner, ArtifactFilter(**conditions), limit=limit, cursor=cursor
            )
            artifact_ids += [stored_artifact.artifact.id for stored_artifact in page]
            if cursor is None:
                return artifact_ids

    output_id = derive_step_artifact_id(job.id, 0, 0)
    assert await list_ids() == await list_ids(limit=1) == [video.id, upload.id, output_id]
    assert await list_ids(job_id=job.id) == [output_id]
    assert await list_ids(media_type="image/*", limit=1) == [upload.id, output_id]
    assert await list_ids(media_type="image/png", job_id=job.id) == [output_id]
    assert await list_ids(media_type="image/p*") == await list_ids(media_type="video/m_4") == []
    assert await list_ids("bob") == await list_ids("bob", job_id=job.id) == []
    assert await list_ids("bob", media_type="image/png") == []


async def test_name_of_a_file_deleted_by_an_old_version_is_free(
    database: Database, tmp_path: Path
) -> None:
    """A new upload can take a deleted file's name, even if an older version left the name reserved."""
    rig = Rig(database, tmp_path)
    name = ComfyFileName(filename="a.png", subfolder="", type="input")
    old_artifact = await rig.make_artifact(b"old", "art_" + "0" * 32)
    new_artifact = await rig.make_artifact(b"new", "art_" + "1" * 32)
    await rig.uploads.put("ada", name, old_artifact, may_replace=False)
    deletion_statement = (
        artifacts.update().where(artifacts.c.id == old_artifact.id).values(deleted_at=now())
    )
    await database.execute(deletion_statement)
    assert await rig.uploads.put("ada", name, new_artifact, may_replace=False) == new_artifact
    assert await rig.uploads.find("ada", [name]) == {name: new_artifact}


async def test_job_filter_reveals_no_files_of_another_tenant(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_SCANNED", 1)
    rig = Rig(database, tmp_path)
    job = await rig.create_job()
    job_filter = ArtifactFilter(job_id=job.id)
    own_artifacts, _ = await rig.artifacts.list_page("ada", job_filter, limit=10)
    assert len(own_artifacts) == 1
    assert await rig.artifacts.list_page("eve", job_filter, limit=10) == ([], None)


async def test_a_deleted_upload_can_be_restored(database: Database, tmp_path: Path) -> None:
    rig = Rig(database, tmp_path)
    upload = await rig.add_upload(b"again")
    await rig.artifacts.delete("ada", upload.id)
    with pytest.raises(ArtifactNotFound):
        await rig.artifacts.get("ada", upload.id)
    await rig.artifacts.add_or_restore(upload, owner="eve")
    with pytest.raises(ArtifactNotFound):
        await rig.artifacts.get("ada", upload.id)
    await rig.artifacts.add_or_restore(upload, owner="ada")
    assert await rig.artifacts.get("ada", upload.id) == upload
    await rig.pruner.prune_deleted_files(now() + LATER)
    assert await rig.artifacts.get("ada", upload.id) == upload
