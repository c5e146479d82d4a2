"""Tests posters of videos on a real gateway, for uploads and for files of jobs."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image
from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import StepResult
from moyin.jobs.workflows.step_io import save_output
from moyin.jobs.workflows.types import StepInput, StepOutcome
from moyin.store.artifacts import derive_step_artifact_id
from tests.integration.gateway.fixtures import Farm
from tests.videos import RED, make_sound, make_video, make_video_with_false_size

LINK = {"expires_in": 60}


async def upload_artifact(farm: Farm, content: bytes, media_type: str) -> str:
    """Upload a file, and return its URL."""
    headers = {"content-type": media_type}
    async with farm.client.post("/artifacts", data=content, headers=headers) as response:
        body: dict[str, Any] = await response.json()
        assert response.status == 201, body
        return str(body["url"])


async def read_poster(client: aiohttp.ClientSession, url: str, width: int = 256) -> Image.Image:
    async with client.get(url, params={"w": width}) as response:
        content = await response.read()
        assert (response.status, response.content_type) == (200, "image/webp"), content
        # Shared caches would show it to others.
        assert response.headers["cache-control"].startswith("private, max-age=")
    with Image.open(BytesIO(content)) as picture:
        picture.load()
    return picture


async def read_problem(client: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with client.get(url, params={"w": 256}) as response:
        problem: dict[str, Any] = await response.json()
        return {"status": response.status, **problem}


@pytest.mark.parametrize(
    ("container", "codec", "media_type"),
    [("mp4", "h264", "video/mp4"), ("webm", "libvpx-vp9", "video/webm")],
)
async def test_an_uploaded_video_has_a_poster_for_its_owner_only(
    farm: Farm, container: str, codec: str, media_type: str
) -> None:
    url = await upload_artifact(farm, make_video(container, codec), media_type)
    for _ in range(2):
        poster = await read_poster(farm.client, url)
        assert poster.size == (256, 128)
        assert poster.getpixel((128, 64)) == pytest.approx(RED, abs=6)
    # The poster is cached by now, which another tenant must not profit from.
    problem = await read_problem(farm.other, url)
    assert (problem["status"], problem["code"]) == (404, "artifact_not_found")
    async with farm.client.post(f"{url}/link", json=LINK) as response:
        link_url = (await response.json())["url"]
    async with aiohttp.ClientSession(farm.url) as page_session:
        assert (await read_poster(page_session, link_url)).size == (256, 128)
        assert (await read_problem(page_session, url))["status"] == 401


async def test_the_video_of_a_job_has_a_poster(working_farm: Farm) -> None:
    @activity.defn(name="render_step")
    async def render_video(step: StepInput) -> StepOutcome:
        video = make_video()
        artifact = Artifact(
            id=derive_step_artifact_id(step.job_id, step.index, 0),
            name="a.mp4",
            media_type="video/mp4",
            size=len(video),
            sha256=await working_farm.blobs.put(video),
        )
        output = await save_output(working_farm.blobs, artifacts=[artifact])
        result = StepResult(index=step.index, output=output, artifacts=(artifact,))
        return StepOutcome(result=result)

    workflow = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    async with working_farm.run_renderer(render_video):
        job = await working_farm.submit_job({"kind": "render", "workflow": workflow})
        ended_job = await working_farm.wait_for_status(job["id"], "succeeded")
    [video_artifact] = ended_job["artifacts"]
    assert (await read_poster(working_farm.client, video_artifact["url"])).size == (256, 128)
    assert (await read_problem(working_farm.other, video_artifact["url"]))[
        "code"
    ] == "artifact_not_found"
    # A page that follows the job shows the poster by its event token.
    async with working_farm.client.post(f"/jobs/{job['id']}/token", json={}) as response:
        token = (await response.json())["token"]
    async with aiohttp.ClientSession(working_farm.url) as page_session:
        poster = await read_poster(page_session, f"{video_artifact['url']}?token={token}", 64)
        assert poster.size == (64, 32)


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        # The index of an MP4 is at its end.
        (make_video()[:-100], "video/mp4", 400, "invalid_request"),
        (b"not a video", "video/webm", 400, "invalid_request"),
        (make_sound(), "video/mp4", 400, "invalid_request"),
        (make_video_with_false_size(16_000), "video/quicktime", 413, "picture_too_large"),
    ],
    ids=["truncated", "text", "sound", "huge"],
)
async def test_a_broken_video_has_no_poster_and_is_still_a_file(
    farm: Farm, content: bytes, media_type: str, status: int, code: str
) -> None:
    url = await upload_artifact(farm, content, media_type)
    problem = await read_problem(farm.client, url)
    assert (problem["status"], problem["code"], problem["field"]) == (status, code, "w")
    async with farm.client.get(url) as response:
        assert (response.status, await response.read()) == (200, content)
    good_url = await upload_artifact(farm, make_video(), "video/mp4")
    assert (await read_poster(farm.client, good_url)).size == (256, 128)
