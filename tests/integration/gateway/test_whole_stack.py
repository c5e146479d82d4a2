"""Tests a whole farm from outside: HAProxy, Serve, Temporal, Valkey, ComfyUI, llama.cpp."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.chaos.graphs import picture, sleepy
from tests.integration.gateway.raw_http import SlowClients
from tests.stack import RecordMeasurement, RunningStack
from tests.waiting import eventually

PNG = b"\x89PNG\r\n\x1a\n"
FINAL = {"succeeded", "failed", "cancelled"}
_colors = itertools.count(0x700000)


SLOW = {"": 40, "/jobs": 10, "/accounts/login": 10, "/v1/chat/completions": 10, "/prompt": 10}


@pytest.fixture(scope="module", autouse=True)
def slow_clients(gateway: RunningStack) -> SlowClients:
    """Run slow clients during all tests of this module; they must not affect the tests."""
    return SlowClients(gateway.ports.door, gateway.api_key, SLOW)


@pytest.fixture(scope="module")
def keyless_clients(gateway: RunningStack) -> SlowClients:
    """Run slow clients without a key on routes that need one."""
    return SlowClients(
        gateway.ports.door, "", {"/jobs": 5, "/v1/chat/completions": 5, "/accounts/me": 5}
    )


@pytest.fixture
async def session(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        await _wait_for_pool(session)
        yield session
    # A connection that was cut while we sent needs a moment of the loop to be closed.
    await asyncio.sleep(0.1)


async def test_an_unknown_node_is_refused_by_comfyui_before_it_is_queued(
    session: aiohttp.ClientSession,
) -> None:
    graph = picture(next(_colors))
    graph["1"]["class_type"] = "NoSuchNode"
    status, problem = await _post_job(session, {"kind": "render", "workflow": graph})
    assert (status, problem["code"]) == (400, "invalid_graph")
    assert problem["error"]["type"] == "invalid_prompt"
    assert "NoSuchNode" in problem["error"]["message"]


async def test_a_bad_link_is_refused_with_comfyuis_own_body(
    session: aiohttp.ClientSession,
) -> None:
    graph = picture(next(_colors))
    graph["2"]["inputs"]["images"] = ["1", 7]
    status, problem = await _post_job(session, {"kind": "render", "workflow": graph})
    assert (status, problem["code"]) == (400, "invalid_graph")
    graph["2"]["inputs"] = {"filename_prefix": "p"}
    status, problem = await _post_job(session, {"kind": "render", "workflow": graph})
    assert (status, problem["code"]) == (400, "invalid_graph")
    [error] = problem["node_errors"]["2"]["errors"]
    assert error["type"] == "required_input_missing"


async def test_a_picture_of_one_step_is_the_input_of_the_next(
    session: aiohttp.ClientSession,
) -> None:
    second_graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "${steps.0.artifacts.0}"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "i"}},
    }
    steps = [
        {"kind": "render", "workflow": picture(next(_colors))},
        {"kind": "render", "workflow": second_graph},
    ]
    job = await _submit_and_wait(session, {"kind": "pipeline", "steps": steps})
    assert (job["status"], job["error"]) == ("succeeded", None)
    pictures = []
    for artifact in job["artifacts"]:
        async with session.get(artifact["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/png")
            pictures.append(await response.read())
    assert [p[:8] for p in pictures] == [PNG, PNG]
    assert pictures[0] != pictures[1]


async def test_pipeline_of_chat_and_http_steps_succeeds(session: aiohttp.ClientSession) -> None:
    first_request = {
        "model": "auto",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    second_request = {
        **first_request,
        "messages": [{"role": "user", "content": "Repeat: ${steps.0.text}"}],
    }
    steps = [
        {"kind": "chat", "request": first_request},
        {"kind": "chat", "request": second_request},
        {"kind": "http", "request": {"method": "GET", "path": "/v1/models"}},
    ]
    job = await _submit_and_wait(session, {"kind": "pipeline", "steps": steps})
    assert (job["status"], job["error"]) == ("succeeded", None)
    texts = [output["text"] for output in job["outputs"]]
    assert texts[0]
    assert texts[1]
    assert job["outputs"][2]["body"]["object"] == "list"


async def test_events_come_live_and_resume_by_id(session: aiohttp.ClientSession) -> None:
    _, job = await _post_job(session, {"kind": "render", "workflow": sleepy(4, next(_colors))})
    events = await _read_events(session, job["id"])
    event_types = [event["event"] for event in events]
    assert event_types[0] == "queued"
    assert event_types[-1] == "succeeded"
    assert event_types.count("progress") >= 3
    assert {"running", "step"} <= set(event_types)
    middle_id = events[len(events) // 2]["id"]
    resumed_events = await _read_events(session, job["id"], after_id=middle_id)
    assert [e["id"] for e in resumed_events] == [e["id"] for e in events[len(events) // 2 + 1 :]]


async def test_a_websocket_reports_the_end_of_a_job(session: aiohttp.ClientSession) -> None:
    _, job = await _post_job(session, {"kind": "render", "workflow": picture(next(_colors))})
    async with session.ws_connect(f"/jobs/{job['id']}/ws") as socket:
        events = [json.loads(message.data) async for message in socket]
    assert events[-1]["type"] == "succeeded"


async def test_cancelling_ends_only_the_running_prompt(
    session: aiohttp.ClientSession,
    record_measurement: RecordMeasurement,
) -> None:
    _, running_job = await _post_job(
        session, {"kind": "render", "workflow": sleepy(60, next(_colors))}
    )
    _, other_job = await _post_job(session, {"kind": "render", "workflow": picture(next(_colors))})
    await _wait_until(session, running_job["id"], lambda job: job["progress"]["value"] > 0)
    sent_at = time.monotonic()
    async with session.post(f"/jobs/{running_job['id']}/cancel") as response:
        assert response.status == 202
    cancelled_job = await _wait_until(
        session, running_job["id"], lambda job: job["status"] in FINAL
    )
    assert cancelled_job["status"] == "cancelled"
    spared_job = await _wait_until(session, other_job["id"], lambda job: job["status"] in FINAL)
    assert spared_job["status"] == "succeeded"
    record_measurement(
        f"cancelled and the next one done {time.monotonic() - sent_at:.1f} s after the request"
    )
    async with session.post(f"/jobs/{running_job['id']}/cancel") as response:
        assert (response.status, (await response.json())["code"]) == (409, "job_finished")


async def test_a_node_that_raises_fails_the_job_with_its_name(
    session: aiohttp.ClientSession,
) -> None:
    graph = picture(next(_colors))
    graph["3"] = {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    job = await _submit_and_wait(session, {"kind": "render", "workflow": graph})
    assert (job["status"], job["error"]["code"]) == ("failed", "render_failed")
    assert "TestSyncError" in json.dumps(job["error"])


async def test_two_tenants_do_not_see_each_other(
    gateway: RunningStack, session: aiohttp.ClientSession
) -> None:
    job = await _submit_and_wait(session, {"kind": "render", "workflow": picture(next(_colors))})
    [key] = [
        word
        for word in gateway.run("keys", "create", "other").stdout.split()
        if word.startswith("moyin_")
    ]
    other_headers = {"authorization": f"Bearer {key}"}
    for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/events", job["artifacts"][0]["url"]):
        async with session.get(path, headers=other_headers) as response:
            assert response.status == 404, path
    async with session.get("/jobs", headers=other_headers) as response:
        assert (await response.json())["jobs"] == []


async def test_response_has_one_request_id_and_keeps_the_clients_id(
    session: aiohttp.ClientSession,
) -> None:
    for path in ("/jobs", "/v1/models"):
        async with session.get(path, headers={"x-request-id": "shot-12"}) as response:
            assert response.headers.getall("x-request-id") == ["shot-12"]
        async with session.get(path, headers={"x-request-id": "{bad}"}) as response:
            [generated_id] = response.headers.getall("x-request-id")
            assert generated_id != "{bad}"


@pytest.mark.parametrize("path", ["/jobs", "/v1/chat/completions", "/v1/messages"])
async def test_a_body_over_the_limit_is_cut_on_the_stream(
    session: aiohttp.ClientSession, path: str
) -> None:
    async def generate_endless_body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * (1024 * 1024)

    # An app that reads such a body to its end would never respond.
    async with asyncio.timeout(60):
        try:
            async with session.post(path, data=generate_endless_body()) as response:
                assert response.status == 413
                assert b"body_too_large" in await response.read()
        except aiohttp.ClientConnectionError:
            # The connection may be cut while we still send.
            pass


async def test_connections_that_send_a_byte_a_second_are_closed(
    slow_clients: SlowClients, record_measurement: RecordMeasurement
) -> None:
    await asyncio.to_thread(slow_clients.wait_until_closed, 240)
    assert {
        target: len(ended_connections) for target, ended_connections in slow_clients.ended.items()
    } == SLOW
    for target, ended_connections in slow_clients.ended.items():
        for response, _ in ended_connections:
            if target:
                assert (response.status, b"body_too_slow" in response.body) == (408, True), target
            else:
                # HAProxy itself ends a request whose head does not arrive.
                assert response.status in (0, 408)
        sorted_seconds = sorted(
            closed_after_seconds for _, closed_after_seconds in ended_connections
        )
        record_measurement(
            f"slow {target or 'heads'}: ended after {sorted_seconds[0]:.1f} to {sorted_seconds[-1]:.1f} s"
        )


async def test_slow_bodies_without_a_key_are_not_waited_for(
    keyless_clients: SlowClients, record_measurement: RecordMeasurement
) -> None:
    await asyncio.to_thread(keyless_clients.wait_until_closed, 60)
    for target, ended_connections in keyless_clients.ended.items():
        assert {response.status for response, _ in ended_connections} == {401}
        longest_seconds = max(closed_after_seconds for _, closed_after_seconds in ended_connections)
        record_measurement(
            f"slow {target} without a key: ended after {longest_seconds:.1f} s at most"
        )
        assert longest_seconds < 20


async def _wait_for_pool(session: aiohttp.ClientSession) -> None:
    """Wait until a picture has been rendered, and invalid graphs are refused.

    Graphs are not validated while the pool does not respond. After a failed call, the gateway waits
    two seconds before it calls the pool again.
    """
    job = await _submit_and_wait(session, {"kind": "render", "workflow": picture(next(_colors))})
    assert job["status"] == "succeeded", job
    invalid_graph = picture(next(_colors))
    invalid_graph["1"]["class_type"] = "NoSuchNode"

    async def is_invalid_graph_refused() -> bool:
        return (await _post_job(session, {"kind": "render", "workflow": invalid_graph}))[0] == 400

    await eventually(is_invalid_graph_refused, 180)


async def _post_job(session: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
    async with session.post("/jobs", json=body) as response:
        return response.status, await response.json(content_type=None)


async def _submit_and_wait(session: aiohttp.ClientSession, body: Any) -> Any:
    status, job = await _post_job(session, body)
    assert status == 202, job
    return await _wait_until(session, job["id"], lambda job: job["status"] in FINAL)


async def _wait_until(session: aiohttp.ClientSession, job_id: str, condition: Any) -> Any:
    async def fetch_if_done() -> Any:
        async with session.get(f"/jobs/{job_id}") as response:
            job = await response.json()
        return job if condition(job) else None

    return await eventually(fetch_if_done, 240)


async def _read_events(
    session: aiohttp.ClientSession, job_id: str, after_id: str | None = None
) -> list[dict[str, str]]:
    headers = {"last-event-id": after_id} if after_id else {}
    async with (
        asyncio.timeout(60),
        session.get(f"/jobs/{job_id}/events", headers=headers) as response,
    ):
        text = await response.text()
    blocks = [block for block in text.split("\n\n") if "event: " in block]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
