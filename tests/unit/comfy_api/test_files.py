from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from moyin.comfy_api.files import parse_file_name
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobStatus
from moyin.domain.prompt import ComfyFileName, PromptFile
from moyin.errors import ArtifactNotFound, InputNotFound, InvalidRequest
from moyin.store.artifacts import derive_step_artifact_id, generate_artifact_id
from tests.unit.comfy_api.harness import CLIENT, OWNER, ComfyApiHarness, harness, make_record

__all__ = ["harness"]

# Prompts of the harness have the key `k`.
ADA, BOB = Identity(owner=OWNER, key_id="k"), Identity(owner="bob", key_id="k")
COLLEAGUE = Identity(owner=OWNER, key_id="other")
CAT = ComfyFileName(filename="cat.png", subfolder="sub", type="input")


def make_upload(digit: str) -> Artifact:
    """Return an upload; uploads with another ``digit`` have other content."""
    return Artifact(
        id=generate_artifact_id(), name="cat.png", media_type="image/png", size=3, sha256=digit * 64
    )


def make_output(job_id: str, filename: str = "p_00001_.png") -> PromptFile:
    name = ComfyFileName(filename=filename, subfolder=job_id)
    return PromptFile(name=name, media_type="image/png", size=3, sha256="5" * 64)


@pytest.mark.parametrize(
    ("name_parts", "name"),
    [
        (("cat.png", "sub", "input"), CAT),
        (("sub/cat.png", "", "input"), CAT),
        (("./sub//cat.png", "", "input"), CAT),
        (("cat.png [output]", "", "input"), ComfyFileName(filename="cat.png", type="output")),
        (("cat.png[temp]", "", "input"), ComfyFileName(filename="cat.png", type="temp")),
    ],
)
def test_file_names_are_parsed_like_in_comfyui(
    name_parts: tuple[str, str, str], name: ComfyFileName
) -> None:
    assert parse_file_name(*name_parts) == name


@pytest.mark.parametrize(
    "name_parts",
    [
        ("", "", "output"),
        ("cat.png", "", "models"),
        ("../cat.png", "", "output"),
        ("cat.png", "a/../..", "output"),
        ("/etc/passwd", "", "output"),
        ("cat.png", "/etc", "output"),
        ("a\\cat.png", "", "output"),
        ("cat\n.png", "", "output"),
        ("folder/", "", "output"),
        (".", "", "output"),
        ("c" * 256, "", "output"),
    ],
)
def test_a_name_that_leads_out_of_its_folder_is_rejected(name_parts: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_file_name(*name_parts)


async def test_a_taken_name_gets_a_number_unless_the_content_is_the_same(
    harness: ComfyApiHarness,
) -> None:
    first_artifact, second_artifact = make_upload("1"), make_upload("2")
    add_upload = harness.files.add_upload
    assert await add_upload(OWNER, CAT, first_artifact, overwrite=False) == (CAT, first_artifact)
    repeated_upload = await add_upload(OWNER, CAT, make_upload("1"), overwrite=False)
    assert repeated_upload == (CAT, first_artifact), (
        "the artifact that has the name, not the new one"
    )
    new_name, artifact = await add_upload(OWNER, CAT, second_artifact, overwrite=False)
    assert new_name == ComfyFileName(filename="cat (1).png", subfolder="sub", type="input")
    assert artifact == second_artifact
    bobs_name, _ = await add_upload("bob", CAT, make_upload("2"), overwrite=False)
    assert bobs_name == CAT, "names are per tenant"
    assert await harness.files.find_file(ADA, CAT) == first_artifact
    third_artifact = make_upload("3")
    assert await add_upload(OWNER, CAT, third_artifact, overwrite=True) == (CAT, third_artifact)
    assert await harness.files.find_file(ADA, CAT) == third_artifact
    # The names are those that graphs use.
    assert set(await harness.files.list_uploads(OWNER)) == {"sub/cat.png", "sub/cat (1).png"}
    assert await harness.files.list_uploads(OWNER, "temp") == []


async def test_only_the_owner_finds_an_output(harness: ComfyApiHarness) -> None:
    job = await harness.create_job(is_running=True)
    file = make_output(job.id)
    step_result = await harness.store_result(make_record(files=(file,)))
    await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[step_result])
    artifact = await harness.files.find_file(ADA, file.name)
    assert (artifact.sha256, artifact.name) == (file.sha256, file.name.filename)
    assert await harness.files.find_file(ADA, file.name) == artifact, "under the same id"
    other_name = ComfyFileName(filename="q.png", subfolder=job.id)
    name_in_other_folder = ComfyFileName(filename="p_00001_.png", subfolder=str(uuid.uuid4()))
    for caller, name in (
        (BOB, file.name),
        (ADA, other_name),
        (ADA, name_in_other_folder),
        (ADA, CAT),
    ):
        with pytest.raises(ArtifactNotFound):
            await harness.files.find_file(caller, name)


async def finish_job(
    harness: ComfyApiHarness, job: Job, digit: str, name: str = "p_00001_.png"
) -> Artifact:
    """End a job with one output file, whose content is determined by ``digit``."""
    artifact = replace(make_upload(digit), id=derive_step_artifact_id(job.id, 0, 0), name=name)
    step_result = replace(await harness.store_result(make_record()), artifacts=(artifact,))
    await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[step_result])
    return artifact


async def test_an_output_without_a_subfolder_is_the_newest_of_the_caller(
    harness: ComfyApiHarness,
) -> None:
    bare_name = ComfyFileName(filename="p_00001_.png")
    with pytest.raises(ArtifactNotFound):
        await harness.files.find_file(ADA, bare_name)
    jobs = [
        await harness.create_job(is_running=True, key_id=key, client=key)
        for key in ("k", "k", "other")
    ]
    first_output, second_output, colleagues_output = [
        await finish_job(harness, job, d) for job, d in zip(jobs, "123", strict=True)
    ]
    assert await harness.files.find_file(ADA, bare_name) == second_output
    assert await harness.files.find_file(COLLEAGUE, bare_name) == colleagues_output
    # A key without prompts of its own finds the newest of the tenant.
    other_identity = Identity(owner=OWNER, key_id="new")
    assert await harness.files.find_file(other_identity, bare_name) == colleagues_output
    # A client's own come first, before those of the key.
    assert await harness.files.find_file(ADA, bare_name, "other") == colleagues_output
    assert await harness.files.find_file(COLLEAGUE, bare_name, "k") == second_output
    assert await harness.files.find_file(ADA, bare_name, "unknown") == colleagues_output
    # The name of the file must be equal, and nothing is searched for uploads.
    for name in ("p_00001_.pn%", "P_00001_.png", "p_00002_.png", "*"):
        with pytest.raises(ArtifactNotFound):
            await harness.files.find_file(ADA, ComfyFileName(filename=name))
    with pytest.raises(ArtifactNotFound):
        await harness.files.find_file(ADA, replace(bare_name, type="input"))
    assert first_output.sha256 != second_output.sha256


async def test_a_person_finds_the_newest_output_of_all_own_keys(harness: ComfyApiHarness) -> None:
    bare_name = ComfyFileName(filename="p_00001_.png")
    jobs = [await harness.create_job(is_running=True, key_id=key, user="u") for key in ("k1", "k2")]
    jobs.append(await harness.create_job(is_running=True, key_id="k3"))
    for job, digit in zip(jobs, "123", strict=True):
        await finish_job(harness, job, digit)
    session = Identity(owner=OWNER, key_id="ses_1", user="u")
    assert (await harness.files.find_file(session, bare_name)).sha256 == "2" * 64


async def test_outputs_of_other_tenants_and_uploads_are_never_the_newest(
    harness: ComfyApiHarness,
) -> None:
    bare_name = ComfyFileName(filename="p_00001_.png")
    bobs_job = await harness.create_job(owner="bob", is_running=True)
    await finish_job(harness, bobs_job, "1")
    with pytest.raises(ArtifactNotFound):
        await harness.files.find_file(ADA, bare_name, CLIENT)
    # An upload with the name is no output, whatever artifact row it has.
    upload = replace(make_upload("2"), name=bare_name.filename)
    await harness.files.add_upload(OWNER, replace(bare_name, type="input"), upload, overwrite=False)
    with pytest.raises(ArtifactNotFound):
        await harness.files.find_file(ADA, bare_name)
    assert (await harness.files.find_file(BOB, bare_name)).sha256 == "1" * 64
    # An upload among the outputs has its exact name.
    await harness.files.add_upload("bob", bare_name, make_upload("3"), overwrite=False)
    assert (await harness.files.find_file(BOB, bare_name)).sha256 == "3" * 64


async def test_outputs_of_a_running_prompt_are_found(harness: ComfyApiHarness) -> None:
    job = await harness.create_job(is_running=True)
    file = make_output(job.id)
    harness.frames.files[job.id, file.name.path] = file
    assert (await harness.files.find_file(ADA, file.name)).sha256 == file.sha256
    with pytest.raises(ArtifactNotFound):
        await harness.files.find_file(BOB, file.name)


async def test_a_graph_can_name_uploads_and_earlier_outputs(harness: ComfyApiHarness) -> None:
    job = await harness.create_job(is_running=True)
    file = replace(make_output(job.id), sha256=await harness.blobs.put(b"png"))
    pruned_file = make_output(job.id, "q_00001_.png")
    step_result = await harness.store_result(make_record(files=(file, pruned_file)))
    await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[step_result])
    await harness.files.add_upload(OWNER, CAT, make_upload("1"), overwrite=False)
    earlier_output = f"{job.id}/p_00001_.png [output]"
    pruned_output = f"{job.id}/q_00001_.png [output]"
    artifacts_by_text = await harness.files.find_in_texts(
        OWNER, ["sub/cat.png", earlier_output, pruned_output, "dog.png", "../x.png"]
    )
    assert {text: artifact.sha256 for text, artifact in artifacts_by_text.items()} == {
        "sub/cat.png": "1" * 64,
        earlier_output: file.sha256,
    }
    # The output has an artifact row now, so that a job may reference it.
    graph = {"1": {"inputs": {"image": f"artifact:{artifacts_by_text[earlier_output].id}"}}}
    assert (await harness.files.find_referenced_artifacts(OWNER, graph)).keys() == {
        artifacts_by_text[earlier_output].id
    }
    with pytest.raises(InputNotFound):
        await harness.files.find_referenced_artifacts("bob", graph)
