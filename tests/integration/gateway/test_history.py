"""Tests how jobs are listed, filtered and deleted with their files, on a gateway and on a farm."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.chaos.graphs import picture
from tests.integration.gateway.fixtures import Farm
from tests.stack import RunningStack
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}
RENDER: dict[str, Any] = {
    "kind": "render",
    "workflow": {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}},
}
FINAL = {"succeeded", "failed", "cancelled"}
_colors = itertools.count(0x510000)


async def call_json(
    client: aiohttp.ClientSession, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """Return the status and the JSON of a response; the JSON is None if it has no body."""
    async with client.request(method, path, json=body) as response:
        content = await response.read()
        return response.status, await response.json() if content else None


async def list_ids(client: aiohttp.ClientSession, query: str = "") -> list[str]:
    status, page = await call_json(client, "GET", f"/jobs?{query}")
    assert status == 200, page
    return [job["id"] for job in page["jobs"]]


def encode_png(width: int = 400, height: int = 200) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


async def upload_artifact(
    client: aiohttp.ClientSession, content: bytes, media_type: str = "image/png"
) -> str:
    """Upload a file, and return its id."""
    headers = {"content-type": media_type}
    async with client.post("/artifacts", data=content, headers=headers) as response:
        assert response.status == 201
        return str((await response.json())["id"])


async def test_a_job_shows_its_request(farm: Farm) -> None:
    chat_job = await farm.submit_job(CHAT)
    render_job = await farm.submit_job({**RENDER, "webhook": "http://127.0.0.1:9/hook"})
    assert (await farm.fetch_job(chat_job["id"]))["submitted"]["steps"][0]["request"] == CHAT[
        "request"
    ]
    submitted_request = (await farm.fetch_job(render_job["id"]))["submitted"]
    assert submitted_request["webhook"] == "http://127.0.0.1:9/[hidden]"
    [step] = submitted_request["steps"]
    assert await call_json(farm.client, "GET", step["graph"]) == (200, RENDER["workflow"])
    status, problem = await call_json(farm.other, "GET", step["graph"])
    assert (status, problem["code"]) == (404, "job_not_found")
    status, problem = await call_json(farm.client, "GET", f"/jobs/{chat_job['id']}/graph")
    assert (status, problem["code"]) == (404, "job_not_found")


async def test_filters_find_jobs_and_unknown_parameters_are_refused(farm: Farm) -> None:
    chat_job_id = (await farm.submit_job({**CHAT, "metadata": {'a"b': "x y", "c": "1"}}))["id"]
    fast_job_id = (await farm.submit_job({**RENDER, "pool": "fast", "metadata": {"c": "1"}}))["id"]
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x"}}
    swatch_job_id = (await farm.submit_job(body))["id"]
    await call_json(farm.client, "POST", f"/jobs/{swatch_job_id}/cancel")
    created_at = (await farm.fetch_job(fast_job_id))["created_at"].replace("+00:00", "Z")
    for query, expected_ids in {
        "status=queued,cancelled": [swatch_job_id, fast_job_id, chat_job_id],
        "status=queued&status=cancelled&kind=render": [swatch_job_id, fast_job_id],
        "pool=fast": [fast_job_id],
        "template=swatch": [swatch_job_id],
        "metadata.c=1": [fast_job_id, chat_job_id],
        "metadata.c=1&metadata.a%22b=x%20y": [chat_job_id],
        "search=X": [swatch_job_id, chat_job_id],
        "search=y%20x&kind=chat": [chat_job_id],
        f"created_after={created_at}": [swatch_job_id, fast_job_id],
        f"created_before={created_at}": [chat_job_id],
    }.items():
        assert await list_ids(farm.client, query) == expected_ids, query
        assert await list_ids(farm.other, query) == [], query
    for query, field in {
        "state=queued": "state",
        "status=done": "status",
        "metadata=x": "metadata",
        "created_after=yesterday": "created_after",
        "kind=chat&kind=http": "kind",
        "search=": "search",
        "search=%20-": "search",
    }.items():
        status, problem = await call_json(farm.client, "GET", f"/jobs?{query}")
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", field)


async def test_an_ended_job_is_deleted_with_its_events(working_farm: Farm) -> None:
    farm = working_farm
    headers = {"Idempotency-Key": "once"}
    job_id = (await farm.submit_job(CHAT, **headers))["id"]
    await farm.wait_for_status(job_id, "succeeded")
    status, problem = await call_json(farm.other, "DELETE", f"/jobs/{job_id}")
    assert (status, problem["code"]) == (404, "job_not_found")

    async def has_all_events() -> bool:
        events = await farm.events.replay(job_id, None)
        return bool(events) and events[-1].type.is_final

    await eventually(has_all_events, 10)
    assert await call_json(farm.client, "DELETE", f"/jobs/{job_id}") == (204, None)
    for method, path in (
        ("GET", f"/jobs/{job_id}"),
        ("DELETE", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/events"),
        ("POST", f"/jobs/{job_id}/retry"),
        ("POST", f"/jobs/{job_id}/cancel"),
    ):
        status, problem = await call_json(farm.client, method, path)
        assert (status, problem["code"]) == (404, "job_not_found"), path
    assert await farm.events.replay(job_id, None) == []
    second_job_id = (await farm.submit_job(CHAT, **headers))["id"]
    assert second_job_id != job_id
    await farm.wait_for_status(second_job_id, "succeeded")


async def test_an_open_job_must_be_cancelled_first(farm: Farm) -> None:
    job_id = (await farm.submit_job(CHAT))["id"]
    status, problem = await call_json(farm.client, "DELETE", f"/jobs/{job_id}")
    assert (status, problem["code"]) == (409, "job_not_finished")
    assert f"/jobs/{job_id}/cancel" in problem["detail"]
    assert (await farm.fetch_job(job_id))["status"] == "queued"


async def test_many_jobs_are_cancelled_and_deleted_by_a_filter(working_farm: Farm) -> None:
    farm = working_farm
    # No worker renders, so that these stay open.
    old_job_ids = [
        (await farm.submit_job({**RENDER, "metadata": {"p": "old"}}))["id"] for _ in range(3)
    ]
    new_job_id = (await farm.submit_job({**RENDER, "metadata": {"p": "new"}}))["id"]
    body: dict[str, Any] = {"filter": {"metadata": {"p": "old"}}, "dry_run": True}
    dry_run_counts = {"matched": 3, "done": 0, "skipped": 0, "dry_run": True, "next_cursor": None}
    assert await call_json(farm.client, "POST", "/jobs/cancel", body) == (200, dry_run_counts)
    assert await call_json(farm.client, "POST", "/jobs/delete", body) == (200, dry_run_counts)
    body["dry_run"] = False
    status, result = await call_json(farm.client, "POST", "/jobs/delete", body)
    assert (status, result["matched"], result["done"], result["skipped"]) == (200, 3, 0, 3)
    status, result = await call_json(farm.other, "POST", "/jobs/cancel", body)
    assert (status, result["matched"]) == (200, 0)
    status, result = await call_json(farm.client, "POST", "/jobs/cancel", body)
    assert (status, result["matched"], result["done"], result["skipped"]) == (200, 3, 3, 0)
    for job_id in old_job_ids:
        await farm.wait_for_status(job_id, "cancelled")
    status, result = await call_json(farm.client, "POST", "/jobs/delete", body)
    assert (status, result["matched"], result["done"], result["skipped"]) == (200, 3, 3, 0)
    assert await list_ids(farm.client) == [new_job_id]
    empty_filters: tuple[dict[str, Any], ...] = ({}, {"metadata": {}}, {"status": None})
    for path in ("/jobs/cancel", "/jobs/delete"):
        for empty_filter in empty_filters:
            status, problem = await call_json(farm.client, "POST", path, {"filter": empty_filter})
            assert (status, problem["code"], problem["field"]) == (
                400,
                "invalid_request",
                "filter",
            )
    assert (await farm.fetch_job(new_job_id))["status"] == "queued"


async def test_jobs_are_accepted_while_many_are_deleted(working_farm: Farm) -> None:
    farm = working_farm
    job_ids = [(await farm.submit_job(CHAT))["id"] for _ in range(30)]
    for job_id in job_ids:
        await farm.wait_for_status(job_id, "succeeded")
    body = {"filter": {"status": "succeeded"}}
    delete_task = asyncio.create_task(call_json(farm.client, "POST", "/jobs/delete", body))
    render_job = await farm.submit_job(RENDER)
    status, result = await delete_task
    assert (status, result["done"], result["next_cursor"]) == (200, 30, None)
    assert await list_ids(farm.client) == [render_job["id"]]


async def test_artifacts_are_listed_and_deleted(farm: Farm) -> None:
    picture_id = await upload_artifact(farm.client, encode_png())
    video_id = await upload_artifact(farm.client, b"film", "video/mp4")
    status, page = await call_json(farm.client, "GET", "/artifacts")
    assert (status, [artifact["id"] for artifact in page["artifacts"]]) == (
        200,
        [video_id, picture_id],
    )
    assert page["artifacts"][0]["job"] is None and page["artifacts"][0]["created_at"]
    _, page = await call_json(farm.client, "GET", "/artifacts?media_type=image/*")
    assert [artifact["id"] for artifact in page["artifacts"]] == [picture_id]
    _, page = await call_json(farm.other, "GET", "/artifacts")
    assert page == {"artifacts": [], "next_cursor": None}
    status, problem = await call_json(farm.client, "GET", "/artifacts?type=image")
    assert (status, problem["field"]) == (400, "type")
    status, problem = await call_json(farm.other, "DELETE", f"/artifacts/{video_id}")
    assert (status, problem["code"]) == (404, "artifact_not_found")
    assert await call_json(farm.client, "DELETE", f"/artifacts/{video_id}") == (204, None)
    for method in ("GET", "DELETE"):
        status, problem = await call_json(farm.client, method, f"/artifacts/{video_id}")
        assert (status, problem["code"]) == (404, "artifact_not_found")


async def test_a_link_returns_one_file_without_a_key(farm: Farm) -> None:
    content = encode_png()
    artifact_id, other_artifact_id = (
        await upload_artifact(farm.client, content),
        await upload_artifact(farm.client, b"other"),
    )
    status, link = await call_json(farm.client, "POST", f"/artifacts/{artifact_id}/link")
    assert status == 200, link
    async with aiohttp.ClientSession(farm.url) as anonymous_session:
        async with anonymous_session.get(link["url"]) as response:
            assert (response.status, await response.read()) == (200, content)
        async with anonymous_session.get(link["url"], params={"w": "64"}) as response:
            assert (response.status, response.content_type) == (200, "image/webp")
            assert Image.open(BytesIO(await response.read())).size == (64, 32)
        for path in (f"/artifacts/{artifact_id}", f"/artifacts/{other_artifact_id}"):
            async with anonymous_session.get(path) as response:
                assert response.status == 401
        status, _ = await call_json(anonymous_session, "DELETE", link["url"])
        assert status in (401, 404, 405)
        assert await call_json(farm.client, "DELETE", f"/artifacts/{artifact_id}") == (204, None)
        async with anonymous_session.get(link["url"]) as response:
            assert response.status == 404
    for body, field in (({"expires_in": 0}, "expires_in"), ({"expires_in": 86_401}, "expires_in")):
        status, problem = await call_json(
            farm.client, "POST", f"/artifacts/{other_artifact_id}/link", body
        )
        assert (status, problem["field"]) == (400, field)
    status, problem = await call_json(farm.other, "POST", f"/artifacts/{other_artifact_id}/link")
    assert (status, problem["code"]) == (404, "artifact_not_found")


async def test_thumbnails_are_small_and_only_of_pictures(farm: Farm) -> None:
    picture_id = await upload_artifact(farm.client, encode_png(400, 200))
    text_file_id = await upload_artifact(farm.client, b"text", "text/plain")
    broken_picture_id = await upload_artifact(farm.client, b"\x89PNG\r\n\x1a\n", "image/png")
    path = f"/artifacts/{picture_id}?w=100"
    async with farm.client.get(path) as response:
        assert (response.status, response.content_type) == (200, "image/webp")
        assert Image.open(BytesIO(await response.read())).size == (100, 50)
        etag = response.headers["etag"]
    async with farm.client.get(path, headers={"if-none-match": etag}) as response:
        assert response.status == 304
    async with farm.client.get(f"/artifacts/{picture_id}") as response:
        assert response.headers["etag"] != etag
    for bad_path in (
        f"{picture_id}?w=63",
        f"{picture_id}?w=1025",
        f"{text_file_id}?w=64",
        f"{broken_picture_id}?w=64",
    ):
        status, problem = await call_json(farm.client, "GET", f"/artifacts/{bad_path}")
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", "w"), (
            bad_path
        )
    status, problem = await call_json(farm.other, "GET", path)
    assert (status, problem["code"]) == (404, "artifact_not_found")


@pytest.fixture
async def session(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield session
    await asyncio.sleep(0.1)


async def wait_until_ended(session: aiohttp.ClientSession, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def has_ended() -> bool:
        job.update((await call_json(session, "GET", f"/jobs/{job_id}"))[1])
        return job["status"] in FINAL

    await eventually(has_ended, 120)
    return job


async def test_a_deleted_prompt_and_its_picture_are_gone(session: aiohttp.ClientSession) -> None:
    """After deletion, the picture, history and events are gone, and the id cannot be used again."""
    prompt_id, client_id = str(uuid.uuid4()), uuid.uuid4().hex
    body = {"prompt": picture(next(_colors)), "prompt_id": prompt_id, "client_id": client_id}
    assert (await call_json(session, "POST", "/prompt", body))[0] == 200
    job = await wait_until_ended(session, prompt_id)
    assert job["status"] == "succeeded", job
    [artifact] = job["artifacts"]
    _, history = await call_json(session, "GET", f"/history/{prompt_id}")
    [output] = history[prompt_id]["outputs"].values()
    [image] = output["images"]
    view_path = (
        f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    )
    _, link = await call_json(session, "POST", f"/artifacts/{artifact['id']}/link")
    for path in (artifact["url"], view_path, link["url"], f"{artifact['url']}?w=64"):
        async with session.get(path) as response:
            assert response.status == 200, path
    status, problem = await call_json(session, "DELETE", artifact["url"])
    assert (status, problem["code"]) == (409, "artifact_in_use")

    assert await call_json(session, "DELETE", f"/jobs/{prompt_id}") == (204, None)
    for path in (artifact["url"], view_path, link["url"], f"{artifact['url']}?w=64"):
        async with session.get(path) as response:
            assert response.status == 404, path
    assert await call_json(session, "GET", f"/history/{prompt_id}") == (200, {})
    status, problem = await call_json(session, "GET", f"/jobs/{prompt_id}/events")
    assert (status, problem["code"]) == (404, "job_not_found")
    for color in (next(_colors), next(_colors)):
        repeated_prompt = {"prompt": picture(color), "prompt_id": prompt_id, "client_id": client_id}
        status, problem = await call_json(session, "POST", "/prompt", repeated_prompt)
        assert (status, problem["code"]) == (400, "prompt_id_taken")


async def test_the_same_graph_renders_after_its_first_job_is_deleted(
    session: aiohttp.ClientSession,
) -> None:
    """The second job must have its own picture, even if its result comes from the cache."""
    body = {"kind": "render", "workflow": picture(next(_colors))}
    pictures = []
    for _ in range(2):
        status, job = await call_json(session, "POST", "/jobs", body)
        assert status == 202, job
        [artifact] = (await wait_until_ended(session, job["id"]))["artifacts"]
        async with session.get(artifact["url"]) as response:
            assert response.status == 200
            pictures.append(Image.open(BytesIO(await response.read())).tobytes())
        assert await call_json(session, "DELETE", f"/jobs/{job['id']}") == (204, None)
    assert pictures[0] == pictures[1]
