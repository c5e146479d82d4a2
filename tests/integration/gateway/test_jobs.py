"""Tests the listing of jobs, event streams and health checks on a real gateway."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp

from moyin.domain.queue_place import Duration, QueuePlace
from tests.examples import find_missing_members
from tests.integration.gateway.fixtures import Farm, Services
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.stack import Measured
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}


async def frames(
    client: aiohttp.ClientSession, job_id: str, last: str | None = None
) -> list[dict[str, str]]:
    """Return the server-sent events of a whole stream.

    Args:
        last: the id of the last received event, after which the stream begins.
    """
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client.get(f"/jobs/{job_id}/events", headers=headers) as response:
        if response.status == 204:
            return []
        assert response.content_type == "text/event-stream"
        text = await response.text()
    results = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            results.append(fields)
    return results


async def test_a_submitted_job_is_shown(farm: Farm) -> None:
    async with farm.client.post("/jobs", json={**CHAT, "metadata": {"a": "b"}}) as response:
        job = await response.json()
        assert response.status == 202
        assert response.headers["location"] == f"/jobs/{job['id']}"
    assert job.pop("created_at")
    assert job.pop("id")
    assert job.pop("queued_for") >= 0
    assert job == {
        "kind": "chat", "status": "queued", "steps": 1, "artifacts": [], "error": None,
        "progress": {"value": 0.0, "max": 1.0, "step": 0}, "attempts": 1, "priority": 3,
        "cost_usd": 0.0, "started_at": None, "finished_at": None, "metadata": {"a": "b"},
        "cached": False, "cancelled_by": None, "cancel_requested_by": None, "position": None,
        "eta": None,
    }  # fmt: skip


async def test_pages_and_filters(farm: Farm) -> None:
    jobs = [(await farm.submit(CHAT))["id"] for _ in range(5)]
    render = {"kind": "render", "workflow": {"1": {"class_type": "A", "inputs": {}}}}
    jobs.append((await farm.submit(render))["id"])
    seen: list[str] = []
    cursor = ""
    while True:
        async with farm.client.get(f"/jobs?limit=4{cursor}") as response:
            page = await response.json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        cursor = "&cursor=" + page["next_cursor"].replace("+", "%2B")
    assert seen == jobs[::-1]
    async with farm.client.get("/jobs?kind=render&status=queued") as response:
        assert [job["id"] for job in (await response.json())["jobs"]] == [jobs[-1]]
    async with farm.client.get("/jobs?status=failed") as response:
        assert (await response.json())["jobs"] == []


async def test_a_queued_job_shows_its_place_until_it_runs(farm: Farm) -> None:
    render = {"kind": "render", "workflow": {"1": {"class_type": "A", "inputs": {}}}}
    first, second, beyond = [(await farm.submit(render))["id"] for _ in range(3)]
    soon = Duration(mean=4.0, variance=1.0)
    farm.scripted_pools.places["default"] = {
        second: QueuePlace(position=1),
        first: QueuePlace(position=2, starts_in=soon, ends_in=soon + soon),
    }

    async def listed() -> dict[str, Any]:
        async with farm.client.get("/jobs") as response:
            return {job["id"]: job for job in (await response.json())["jobs"]}

    async def have_places() -> bool:
        shown = await listed()
        places = [shown[job_id]["position"] for job_id in (first, second, beyond)]
        return places == [2, 1, None]

    await eventually(have_places, 30)
    shown = await farm.show(first)
    assert shown["queued_for"] >= 0 and shown["started_at"] is None
    starts_in, ends_in = {"p50": 4.0, "p90": 5.3}, {"p50": 8.0, "p90": 9.8}
    assert shown["eta"] == {"starts_in": starts_in, "ends_in": ends_in}
    assert find_missing_members("docs/farm.md", "eta", shown) == []
    assert (await farm.show(second))["eta"] == {"starts_in": None, "ends_in": None}
    assert (await farm.show(beyond))["eta"] is None
    await farm.jobs.start(first, 1)
    shown = await farm.show(first)
    assert shown["started_at"] is not None
    assert (shown["status"], shown["position"], shown["queued_for"]) == ("running", None, None)
    assert shown["eta"] == {"starts_in": None, "ends_in": ends_in}


async def test_events_tell_the_whole_story(working_farm: Farm) -> None:
    job = await working_farm.submit({"kind": "pipeline", "steps": [CHAT, CHAT]})
    story = await frames(working_farm.client, job["id"])
    assert [f["event"] for f in story] == ["queued", "running", "step", "step", "succeeded"]
    assert [json.loads(f["data"])["step"] for f in story if f["event"] == "step"] == [0, 1]
    assert json.loads(story[-1]["data"])["status"] == "succeeded"


async def test_events_resume_after_the_last_seen(working_farm: Farm) -> None:
    job = await working_farm.submit(CHAT)
    story = await frames(working_farm.client, job["id"])
    rest = await frames(working_farm.client, job["id"], last=story[1]["id"])
    assert [f["id"] for f in rest] == [f["id"] for f in story[2:]]
    assert await frames(working_farm.client, job["id"], last=story[-1]["id"]) == []


async def test_events_go_on_over_a_retry(working_farm: Farm) -> None:
    async def refuse(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=400)

    working_farm.services.answers["/svc/no"] = refuse
    job = await working_farm.submit({"kind": "http", "request": {"path": "/svc/no"}})
    await working_farm.until(job["id"])
    del working_farm.services.answers["/svc/no"]
    await working_farm.client.post(f"/jobs/{job['id']}/retry")
    story = [f["event"] for f in await frames(working_farm.client, job["id"])]
    assert story == ["queued", "running", "failed", "queued", "running", "step", "succeeded"]


async def test_the_websocket_reports_the_same(working_farm: Farm) -> None:
    job = await working_farm.submit(CHAT)
    story = await frames(working_farm.client, job["id"])
    async with working_farm.client.ws_connect(f"/jobs/{job['id']}/ws") as socket:
        events = [json.loads(message.data) async for message in socket]
    assert socket.close_code == 1000
    assert [(m["id"], m["type"]) for m in events] == [(f["id"], f["event"]) for f in story]
    known, path = events[-2]["id"], f"/jobs/{job['id']}"
    resumed: list[dict[str, Any]] = [
        {"params": {"after": known}},
        {"params": {"last_event_id": known}},
        {"headers": {"Last-Event-ID": known}},
        {"headers": {"Last-Event-ID": known}, "params": {"last_event_id": events[0]["id"]}},
    ]
    for options in resumed:
        async with working_farm.client.ws_connect(f"{path}/ws", **options) as socket:
            assert [json.loads(m.data)["id"] async for m in socket] == [events[-1]["id"]]
    for options in resumed[1:]:
        async with working_farm.client.get(f"{path}/events", **options) as response:
            text = await response.text()
        assert text.count("id: ") == 1 and f"id: {events[-1]['id']}\n" in text


async def test_a_stream_ends_when_the_events_are_lost(
    tmp_path: Path, temporal_server: TemporalServer
) -> None:
    """Valkey dies while a client reads the stream, which must still end with the job's success."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    valkey = ValkeyServer(folder)
    farm = Farm(tmp_path, temporal_server, valkey, Services())
    await farm.open()
    released = asyncio.Event()

    async def slow(_: aiohttp.web.Request) -> aiohttp.web.Response:
        await released.wait()
        return aiohttp.web.json_response({})

    farm.services.answers["/svc/slow"] = slow
    try:
        await farm.start_worker()
        job = await farm.submit({"kind": "http", "request": {"path": "/svc/slow"}})
        await farm.until(job["id"], "running")
        watching = asyncio.create_task(frames(farm.client, job["id"]))
        await asyncio.sleep(0.3)
        valkey.kill()
        released.set()
        story = await asyncio.wait_for(watching, 20)
        assert story[-1]["event"] == "succeeded"
        assert "id" not in story[-1]
        assert (await farm.show(job["id"]))["status"] == "succeeded"
        async with farm.client.get("/readyz") as response:
            assert (await response.json())["checks"]["valkey"] == "down"
    finally:
        await farm.close()
        valkey.kill()


async def test_watchers_that_leave_free_everything(farm: Farm) -> None:
    job = await farm.submit(CHAT)
    before = len(asyncio.all_tasks())
    for _ in range(5):
        async with farm.session(farm.key) as client:
            response = await client.get(f"/jobs/{job['id']}/events")
            await response.content.readline()
            socket = await client.ws_connect(f"/jobs/{job['id']}/ws")
            await socket.receive()
            response.close()
            await socket.close()
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 2, seconds=5)


async def test_health(working_farm: Farm) -> None:
    async with aiohttp.ClientSession(working_farm.url) as nobody:
        async with nobody.get("/healthz") as response:
            assert await response.json() == {"status": "ok"}
        async with nobody.get("/readyz") as response:
            assert (response.status, await response.json()) == (
                200,
                {
                    "status": "ready",
                    "checks": {"database": "ok", "temporal": "ok", "valkey": "ok"},
                },
            )


async def test_the_description_has_the_job_request(farm: Farm) -> None:
    async with farm.client.get("/openapi.json") as response:
        described = await response.json()
    schemas = described["components"]["schemas"]
    text = json.dumps(described)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    assert schemas["JobRequest"]["discriminator"]["propertyName"] == "kind"
    async with farm.client.get("/docs") as response:
        assert response.status == 200


async def test_a_job_is_accepted_while_temporal_is_away(
    tmp_path: Path, own_temporal: TemporalServer, valkey_server: ValkeyServer
) -> None:
    farm = Farm(tmp_path, own_temporal, valkey_server, Services())
    await farm.open()
    try:
        await farm.submit(CHAT)
        own_temporal.kill()
        job = await farm.submit(CHAT)
        async with farm.client.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["checks"]["temporal"] == "down"
        async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
            assert (response.status, (await response.json())["code"]) == (
                503, "service_unavailable",
            )  # fmt: skip
        own_temporal.start()
        await farm.start_worker()
        assert (await farm.until(job["id"], seconds=60))["status"] == "succeeded"
    finally:
        await farm.close()


async def test_submitting_answers_at_once(farm: Farm, measured: Measured) -> None:
    await farm.submit(CHAT)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        assert (await farm.submit(CHAT))["status"] == "queued"
        seconds.append(time.perf_counter() - began)
    measured(f"submit: median {statistics.median(seconds) * 1000:.1f} ms")
