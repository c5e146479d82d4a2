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
from tests.integration.gateway.fixtures import Farm, ScriptedService
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.stack import RecordMeasurement
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}


async def read_frames(
    client: aiohttp.ClientSession, job_id: str, last_event_id: str | None = None
) -> list[dict[str, str]]:
    """Return the server-sent events of a whole stream.

    Args:
        last_event_id: the id of the last received event, after which the stream begins.
    """
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with client.get(f"/jobs/{job_id}/events", headers=headers) as response:
        if response.status == 204:
            return []
        assert response.content_type == "text/event-stream"
        text = await response.text()
    frames = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            frames.append(fields)
    return frames


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
        "eta": None, "node_errors": {},
    }  # fmt: skip


async def test_invalid_outputs_beside_valid_ones_are_named_or_refused(farm: Farm) -> None:
    node_error = {
        "class_type": "Loader", "dependent_outputs": ["9"],
        "errors": [{"type": "value_not_in_list", "message": "Value not in list",
                    "details": "ckpt_name: 'gone'", "extra_info": {"input_name": "ckpt_name"}}],
    }  # fmt: skip

    async def validate(pool: str, graph: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"outputs": ["1"], "node_errors": {"4": node_error}}

    farm.validator.validate = validate
    body = {"kind": "render", "workflow": {"1": {"class_type": "A", "inputs": {}}}}
    job = await farm.submit_job({**body, "strict": False})
    assert job["node_errors"] == {"4": node_error}
    async with farm.client.get(f"/jobs/{job['id']}") as response:
        assert (await response.json())["node_errors"] == {"4": node_error}
    async with farm.client.post("/jobs", json={**body, "strict": True}) as response:
        problem = await response.json()
    assert (response.status, problem["code"], problem["field"]) == (
        400, "invalid_graph", "workflow"
    )  # fmt: skip
    assert problem["node_errors"] == {"4": node_error}
    async with farm.client.post("/prompt", json={"prompt": body["workflow"]}) as response:
        prompt = await response.json()
    assert prompt["node_errors"] == {"4": node_error}
    async with farm.client.get(f"/jobs/{prompt['prompt_id']}") as response:
        assert (await response.json())["node_errors"] == {"4": node_error}


async def test_jobs_are_listed_in_pages_and_by_filters(farm: Farm) -> None:
    job_ids = [(await farm.submit_job(CHAT))["id"] for _ in range(5)]
    render_body = {"kind": "render", "workflow": {"1": {"class_type": "A", "inputs": {}}}}
    job_ids.append((await farm.submit_job(render_body))["id"])
    seen_ids: list[str] = []
    cursor = ""
    while True:
        async with farm.client.get(f"/jobs?limit=4{cursor}") as response:
            page = await response.json()
        seen_ids += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        cursor = "&cursor=" + page["next_cursor"].replace("+", "%2B")
    assert seen_ids == job_ids[::-1]
    async with farm.client.get("/jobs?kind=render&status=queued") as response:
        assert [job["id"] for job in (await response.json())["jobs"]] == [job_ids[-1]]
    async with farm.client.get("/jobs?status=failed") as response:
        assert (await response.json())["jobs"] == []


async def test_a_queued_job_shows_its_place_until_it_runs(farm: Farm) -> None:
    render_body = {"kind": "render", "workflow": {"1": {"class_type": "A", "inputs": {}}}}
    first_job_id, second_job_id, third_job_id = [
        (await farm.submit_job(render_body))["id"] for _ in range(3)
    ]
    short_duration = Duration(mean=4.0, variance=1.0)
    farm.scripted_pools.places["default"] = {
        second_job_id: QueuePlace(position=1),
        first_job_id: QueuePlace(
            position=2, starts_in=short_duration, ends_in=short_duration + short_duration
        ),
    }

    async def list_by_id() -> dict[str, Any]:
        async with farm.client.get("/jobs") as response:
            return {job["id"]: job for job in (await response.json())["jobs"]}

    async def are_places_shown() -> bool:
        shown_jobs = await list_by_id()
        places = [
            shown_jobs[job_id]["position"] for job_id in (first_job_id, second_job_id, third_job_id)
        ]
        return places == [2, 1, None]

    await eventually(are_places_shown, 30)
    shown_job = await farm.fetch_job(first_job_id)
    assert shown_job["queued_for"] >= 0 and shown_job["started_at"] is None
    starts_in, ends_in = {"p50": 4.0, "p90": 5.3}, {"p50": 8.0, "p90": 9.8}
    assert shown_job["eta"] == {"starts_in": starts_in, "ends_in": ends_in}
    assert find_missing_members("docs/farm.md", "eta", shown_job) == []
    assert (await farm.fetch_job(second_job_id))["eta"] == {"starts_in": None, "ends_in": None}
    assert (await farm.fetch_job(third_job_id))["eta"] is None
    await farm.jobs.start(first_job_id, 1)
    shown_job = await farm.fetch_job(first_job_id)
    assert shown_job["started_at"] is not None
    assert (shown_job["status"], shown_job["position"], shown_job["queued_for"]) == (
        "running",
        None,
        None,
    )
    assert shown_job["eta"] == {"starts_in": None, "ends_in": ends_in}


async def test_events_report_every_step_and_the_end(working_farm: Farm) -> None:
    job = await working_farm.submit_job({"kind": "pipeline", "steps": [CHAT, CHAT]})
    job_frames = await read_frames(working_farm.client, job["id"])
    assert [f["event"] for f in job_frames] == ["queued", "running", "step", "step", "succeeded"]
    assert [json.loads(f["data"])["step"] for f in job_frames if f["event"] == "step"] == [0, 1]
    assert json.loads(job_frames[-1]["data"])["status"] == "succeeded"


async def test_events_resume_after_the_last_seen(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT)
    job_frames = await read_frames(working_farm.client, job["id"])
    later_frames = await read_frames(
        working_farm.client, job["id"], last_event_id=job_frames[1]["id"]
    )
    assert [f["id"] for f in later_frames] == [f["id"] for f in job_frames[2:]]
    assert (
        await read_frames(working_farm.client, job["id"], last_event_id=job_frames[-1]["id"]) == []
    )


async def test_event_stream_continues_after_a_retry(working_farm: Farm) -> None:
    async def refuse(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=400)

    working_farm.services.answers["/svc/no"] = refuse
    job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/no"}})
    await working_farm.wait_for_status(job["id"])
    del working_farm.services.answers["/svc/no"]
    await working_farm.client.post(f"/jobs/{job['id']}/retry")
    event_names = [f["event"] for f in await read_frames(working_farm.client, job["id"])]
    assert event_names == ["queued", "running", "failed", "queued", "running", "step", "succeeded"]


async def test_the_websocket_reports_the_same_events_as_the_stream(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT)
    job_frames = await read_frames(working_farm.client, job["id"])
    async with working_farm.client.ws_connect(f"/jobs/{job['id']}/ws") as socket:
        events = [json.loads(message.data) async for message in socket]
    assert socket.close_code == 1000
    assert [(m["id"], m["type"]) for m in events] == [(f["id"], f["event"]) for f in job_frames]
    known_event_id, path = events[-2]["id"], f"/jobs/{job['id']}"
    resume_options: list[dict[str, Any]] = [
        {"params": {"after": known_event_id}},
        {"params": {"last_event_id": known_event_id}},
        {"headers": {"Last-Event-ID": known_event_id}},
        {
            "headers": {"Last-Event-ID": known_event_id},
            "params": {"last_event_id": events[0]["id"]},
        },
    ]
    for options in resume_options:
        async with working_farm.client.ws_connect(f"{path}/ws", **options) as socket:
            assert [json.loads(m.data)["id"] async for m in socket] == [events[-1]["id"]]
    async with working_farm.client.ws_connect(
        f"{path}/ws", params={"after": events[-1]["id"]}
    ) as socket:
        assert [message async for message in socket] == [] and socket.close_code == 1000
    for options in resume_options[1:]:
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
    farm = Farm(tmp_path, temporal_server, valkey, ScriptedService())
    await farm.open()
    release_event = asyncio.Event()

    async def answer_slowly(_: aiohttp.web.Request) -> aiohttp.web.Response:
        await release_event.wait()
        return aiohttp.web.json_response({})

    farm.services.answers["/svc/slow"] = answer_slowly
    try:
        await farm.start_worker()
        job = await farm.submit_job({"kind": "http", "request": {"path": "/svc/slow"}})
        await farm.wait_for_status(job["id"], "running")
        watch_task = asyncio.create_task(read_frames(farm.client, job["id"]))
        await asyncio.sleep(0.3)
        valkey.kill()
        release_event.set()
        job_frames = await asyncio.wait_for(watch_task, 20)
        assert job_frames[-1]["event"] == "succeeded"
        assert "id" not in job_frames[-1]
        assert (await farm.fetch_job(job["id"]))["status"] == "succeeded"
        async with farm.client.get("/readyz") as response:
            assert (await response.json())["checks"]["valkey"] == "down"
    finally:
        await farm.close()
        valkey.kill()


async def test_disconnected_watchers_leave_no_tasks(farm: Farm) -> None:
    job = await farm.submit_job(CHAT)
    task_count_before = len(asyncio.all_tasks())
    for _ in range(5):
        async with farm.open_session(farm.key) as client:
            response = await client.get(f"/jobs/{job['id']}/events")
            await response.content.readline()
            socket = await client.ws_connect(f"/jobs/{job['id']}/ws")
            await socket.receive()
            response.close()
            await socket.close()
    await eventually(lambda: len(asyncio.all_tasks()) <= task_count_before + 2, seconds=5)


async def test_health_routes_need_no_key(working_farm: Farm) -> None:
    async with aiohttp.ClientSession(working_farm.url) as anonymous_session:
        async with anonymous_session.get("/healthz") as response:
            assert await response.json() == {"status": "ok"}
        async with anonymous_session.get("/readyz") as response:
            assert (response.status, await response.json()) == (
                200,
                {
                    "status": "ready",
                    "checks": {"database": "ok", "temporal": "ok", "valkey": "ok"},
                },
            )


async def test_openapi_description_contains_the_job_request(farm: Farm) -> None:
    async with farm.client.get("/openapi.json") as response:
        description = await response.json()
    schemas = description["components"]["schemas"]
    description_json = json.dumps(description)
    for name in {
        part.split('"')[0] for part in description_json.split("#/components/schemas/")[1:]
    }:
        assert name in schemas
    assert schemas["JobRequest"]["discriminator"]["propertyName"] == "kind"
    async with farm.client.get("/docs") as response:
        assert response.status == 200


async def test_a_job_is_accepted_while_temporal_is_away(
    tmp_path: Path, own_temporal: TemporalServer, valkey_server: ValkeyServer
) -> None:
    farm = Farm(tmp_path, own_temporal, valkey_server, ScriptedService())
    await farm.open()
    try:
        await farm.submit_job(CHAT)
        own_temporal.kill()
        job = await farm.submit_job(CHAT)
        async with farm.client.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["checks"]["temporal"] == "down"
        async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
            assert (response.status, (await response.json())["code"]) == (
                503, "service_unavailable",
            )  # fmt: skip
        own_temporal.start()
        await farm.start_worker()
        assert (await farm.wait_for_status(job["id"], seconds=60))["status"] == "succeeded"
    finally:
        await farm.close()


async def test_submitted_jobs_are_queued_at_once(
    farm: Farm, record_measurement: RecordMeasurement
) -> None:
    await farm.submit_job(CHAT)
    submit_seconds = []
    for _ in range(30):
        started_at = time.perf_counter()
        assert (await farm.submit_job(CHAT))["status"] == "queued"
        submit_seconds.append(time.perf_counter() - started_at)
    record_measurement(f"submit: median {statistics.median(submit_seconds) * 1000:.1f} ms")
