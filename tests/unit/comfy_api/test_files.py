from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from moyin.comfy_api.files import parse_file_name
from moyin.domain.artifact import Artifact
from moyin.domain.job import JobStatus
from moyin.domain.prompt import ComfyFileName, PromptFile
from moyin.errors import ArtifactNotFound, InputNotFound, InvalidRequest
from moyin.store.artifacts import generate_artifact_id
from tests.unit.comfy_api.rig import OWNER, Rig, record, rig

__all__ = ["rig"]

CAT = ComfyFileName(filename="cat.png", subfolder="sub", type="input")


def content(digit: str) -> Artifact:
    """Return an upload whose content is identified by a digit."""
    return Artifact(
        id=generate_artifact_id(), name="cat.png", media_type="image/png", size=3, sha256=digit * 64
    )


def output(job_id: str, filename: str = "p_00001_.png") -> PromptFile:
    name = ComfyFileName(filename=filename, subfolder=job_id)
    return PromptFile(name=name, media_type="image/png", size=3, sha256="5" * 64)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("cat.png", "sub", "input"), CAT),
        (("sub/cat.png", "", "input"), CAT),
        (("./sub//cat.png", "", "input"), CAT),
        (("cat.png [output]", "", "input"), ComfyFileName(filename="cat.png", type="output")),
        (("cat.png[temp]", "", "input"), ComfyFileName(filename="cat.png", type="temp")),
    ],
)
def test_file_names_are_parsed_like_in_comfyui(
    parts: tuple[str, str, str], name: ComfyFileName
) -> None:
    assert parse_file_name(*parts) == name


@pytest.mark.parametrize(
    "parts",
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
def test_a_name_that_leads_out_of_its_folder_is_rejected(parts: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_file_name(*parts)


async def test_a_taken_name_gets_a_number_unless_the_content_is_the_same(
    rig: Rig,
) -> None:
    first, second = content("1"), content("2")
    put = rig.files.add_upload
    assert await put(OWNER, CAT, first, overwrite=False) == (CAT, first)
    again = await put(OWNER, CAT, content("1"), overwrite=False)
    assert again == (CAT, first), "the artifact that has the name, not the new one"
    renamed, artifact = await put(OWNER, CAT, second, overwrite=False)
    assert renamed == ComfyFileName(filename="cat (1).png", subfolder="sub", type="input")
    assert artifact == second
    bobs, _ = await put("bob", CAT, content("2"), overwrite=False)
    assert bobs == CAT, "names are per tenant"
    assert await rig.files.find_file(OWNER, CAT) == first
    third = content("3")
    assert await put(OWNER, CAT, third, overwrite=True) == (CAT, third)
    assert await rig.files.find_file(OWNER, CAT) == third
    # The names are those that graphs use.
    assert set(await rig.files.list_uploads(OWNER)) == {"sub/cat.png", "sub/cat (1).png"}
    assert await rig.files.list_uploads(OWNER, "temp") == []


async def test_only_the_owner_finds_an_output(rig: Rig) -> None:
    job = await rig.job(begun=True)
    file = output(job.id)
    result = await rig.result(record(files=(file,)))
    await rig.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[result])
    found = await rig.files.find_file(OWNER, file.name)
    assert (found.sha256, found.name) == (file.sha256, file.name.filename)
    assert await rig.files.find_file(OWNER, file.name) == found, "under the same id"
    other = ComfyFileName(filename="q.png", subfolder=job.id)
    elsewhere = ComfyFileName(filename="p_00001_.png", subfolder=str(uuid.uuid4()))
    for owner, name in (("bob", file.name), (OWNER, other), (OWNER, elsewhere), (OWNER, CAT)):
        with pytest.raises(ArtifactNotFound):
            await rig.files.find_file(owner, name)


async def test_outputs_of_a_running_prompt_are_found(rig: Rig) -> None:
    job = await rig.job(begun=True)
    file = output(job.id)
    rig.frames.files[job.id, file.name.path] = file
    assert (await rig.files.find_file(OWNER, file.name)).sha256 == file.sha256
    with pytest.raises(ArtifactNotFound):
        await rig.files.find_file("bob", file.name)


async def test_a_graph_can_name_uploads_and_earlier_outputs(rig: Rig) -> None:
    job = await rig.job(begun=True)
    file = replace(output(job.id), sha256=await rig.blobs.put(b"png"))
    pruned = output(job.id, "q_00001_.png")
    result = await rig.result(record(files=(file, pruned)))
    await rig.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[result])
    await rig.files.add_upload(OWNER, CAT, content("1"), overwrite=False)
    earlier = f"{job.id}/p_00001_.png [output]"
    gone = f"{job.id}/q_00001_.png [output]"
    found = await rig.files.find_in_texts(
        OWNER, ["sub/cat.png", earlier, gone, "dog.png", "../x.png"]
    )
    assert {text: artifact.sha256 for text, artifact in found.items()} == {
        "sub/cat.png": "1" * 64,
        earlier: file.sha256,
    }
    # The output has an artifact row now, so that a job may reference it.
    graph = {"1": {"inputs": {"image": f"artifact:{found[earlier].id}"}}}
    assert (await rig.files.find_referenced(OWNER, graph)).keys() == {found[earlier].id}
    with pytest.raises(InputNotFound):
        await rig.files.find_referenced("bob", graph)
