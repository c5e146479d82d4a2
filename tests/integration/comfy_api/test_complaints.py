"""Tests on a whole farm that common complaints about ComfyUI farms do not apply (docs/farm.md)."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Callable
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image
from yarl import URL

from moyin.domain.job import JobStatus
from tests.chaos.graphs import picture, sleepy
from tests.integration.comfy_api.test_native_api import (
    ComfyClient,
    build_inverting_graph,
    comfy,
    comfyui_up,
    foreign_comfy,
)
from tests.integration.gateway.fixtures import Farm
from tests.nodes import NAME, SCRIPT
from tests.stack import RunningStack
from tests.waiting import eventually

__all__ = ["comfy", "comfyui_up", "foreign_comfy"]

_colors = itertools.count(0x3C0000)
_TIMEOUT_SECONDS = 120
Event = dict[str, Any]


def split_color(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255


async def upload_picture(comfy: ComfyClient, name: str, color: int) -> Any:
    file = BytesIO()
    Image.new("RGB", (8, 8), split_color(color)).save(file, "PNG")
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", file.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        return await response.json()


async def read_pixel(comfy: ComfyClient, file: dict[str, str]) -> Any:
    async with comfy.session.get("/view", params=file) as response:
        assert response.status == 200, await response.text()
        return Image.open(BytesIO(await response.read())).convert("RGB").getpixel((0, 0))


def get_only_file(history_entry: dict[str, Any]) -> dict[str, str]:
    [file] = [file for output in history_entry["outputs"].values() for file in output["images"]]
    return dict(file)


async def receive_until(
    socket: aiohttp.ClientWebSocketResponse, is_last: Callable[[Event], bool]
) -> list[Event]:
    """Return the messages of a WebSocket up to and including the first that ``is_last`` accepts."""
    events: list[Event] = []
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                events.append(json.loads(message.data))
                if is_last(events[-1]):
                    return events
    raise AssertionError(f"the WebSocket was closed after {events}")


def ends_prompt(prompt_id: str) -> Callable[[Event], bool]:
    data = {"node": None, "prompt_id": prompt_id}
    return lambda event: event["type"] == "executing" and event["data"] == data


async def wait_until_running(comfy: ComfyClient, prompt_id: str) -> None:
    async def is_running() -> bool:
        queue = await comfy.get("/queue")
        return prompt_id in [row[1] for row in queue["queue_running"]]

    await eventually(is_running, _TIMEOUT_SECONDS)


async def test_uploads_of_the_same_name_stay_separate_per_tenant(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    name = f"{uuid.uuid4().hex}.png"
    our_color, their_color = next(_colors), next(_colors)
    for caller, color in ((comfy, our_color), (foreign_comfy, their_color)):
        assert (await upload_picture(caller, name, color))["name"] == name
    prompts = [
        (caller, await caller.queue_prompt(build_inverting_graph(name)))
        for caller in (comfy, foreign_comfy)
    ]
    files = [
        get_only_file(await caller.wait_until_finished(prompt_id)) for caller, prompt_id in prompts
    ]
    assert [file["filename"] for file in files] == ["x_00001_.png"] * 2
    for caller, file, color in zip(
        (comfy, foreign_comfy), files, (our_color, their_color), strict=True
    ):
        assert await read_pixel(caller, file) == split_color(0xFFFFFF - color)
        assert await read_pixel(caller, {"filename": name, "type": "input"}) == split_color(color)
    # A second file of the name is another file, as in ComfyUI; the first stays.
    second_upload = await upload_picture(comfy, name, their_color)
    assert second_upload["name"] == name.replace(".png", " (1).png")
    assert await read_pixel(comfy, {"filename": name, "type": "input"}) == split_color(our_color)


async def test_outputs_of_the_same_name_stay_separate_per_prompt(comfy: ComfyClient) -> None:
    colors = [next(_colors), next(_colors)]
    prompt_ids = [await comfy.queue_prompt(picture(color)) for color in colors]
    files = [get_only_file(await comfy.wait_until_finished(prompt_id)) for prompt_id in prompt_ids]
    assert files[0]["filename"] == files[1]["filename"]
    assert [await read_pixel(comfy, file) for file in files] == [
        split_color(color) for color in colors
    ]


async def test_name_without_subfolder_is_the_tenants_newest_output(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    prefix, colors = uuid.uuid4().hex, [next(_colors), next(_colors)]
    name = f"{prefix}_00001_.png"
    for color in colors:
        graph = picture(color)
        graph["2"]["inputs"]["filename_prefix"] = f"deeper/{prefix}"
        await comfy.wait_until_finished(await comfy.queue_prompt(graph))
        for extra_query in ({}, {"type": "output"}, {"subfolder": ""}, {"subfolder": "."}):
            assert await read_pixel(comfy, {"filename": name, **extra_query}) == split_color(color)
    requests = [
        (foreign_comfy, {"filename": name}, 404),
        (foreign_comfy, {"filename": name, "client_id": comfy.id}, 404),
        (comfy, {"filename": name, "type": "input"}, 404),
        (comfy, {"filename": name, "subfolder": "deeper"}, 404),
        (comfy, {"filename": f"{prefix}%"}, 404),
        (comfy, {"filename": f"%/{name}"}, 404),
        (comfy, {"filename": f"../{name}"}, 400),
        (comfy, {"filename": name, "client_id": "c" * 256}, 400),
    ]
    for caller, query, status in requests:
        async with caller.session.get("/view", params=query) as response:
            assert response.status == status, (query, await response.text())


async def test_an_identical_prompt_has_its_own_outputs_and_end(comfy: ComfyClient) -> None:
    color = next(_colors)
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        first_prompt = await comfy.queue_prompt(picture(color))
        await receive_until(socket, ends_prompt(first_prompt))
        second_prompt = await comfy.queue_prompt(picture(color))
        events = [
            e
            for e in await receive_until(socket, ends_prompt(second_prompt))
            if e["type"] != "status"
        ]
    assert {event["data"]["prompt_id"] for event in events} == {second_prompt}
    [cached_nodes] = [
        event["data"]["nodes"] for event in events if event["type"] == "execution_cached"
    ]
    assert sorted(cached_nodes) == ["1", "2"], "nothing was rendered"
    [shown_output] = [event["data"]["output"] for event in events if event["type"] == "executed"]
    file = get_only_file(await comfy.wait_until_finished(second_prompt))
    assert shown_output["images"] == [file]
    assert file["subfolder"].startswith(second_prompt)
    assert await read_pixel(comfy, file) == split_color(color)


async def test_interrupt_stops_only_the_named_prompt(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    ended_prompt = await comfy.queue_prompt(picture(next(_colors)))
    await comfy.wait_until_finished(ended_prompt)
    prompt_id = await comfy.queue_prompt(sleepy(2, next(_colors)))
    await wait_until_running(comfy, prompt_id)
    requests: list[tuple[ComfyClient, str, Any]] = [
        (comfy, "/interrupt", {"prompt_id": ended_prompt}),
        (foreign_comfy, "/interrupt", {}),
        (foreign_comfy, "/interrupt", {"prompt_id": prompt_id}),
        (foreign_comfy, "/queue", {"clear": True}),
        (foreign_comfy, "/queue", {"delete": [prompt_id]}),
        (foreign_comfy, f"/api/jobs/{prompt_id}/cancel", {}),
    ]
    for caller, path, body in requests:
        assert (await caller.post(path, body))[0] == 200, path
    assert (await comfy.wait_until_finished(prompt_id))["status"]["status_str"] == "success"


async def test_a_prompt_is_always_in_the_queue_or_in_the_history(comfy: ComfyClient) -> None:
    """A prompt is in the queue or in the history at any time.

    Clients treat a prompt that is in neither list as lost, and an empty queue as finished.
    """
    for graph in (sleepy(1, next(_colors)), picture(next(_colors))):
        prompt_id = await comfy.queue_prompt(graph)
        history_entry: dict[str, Any] = {}
        while not history_entry:
            remaining_count = (await comfy.get("/prompt"))["exec_info"]["queue_remaining"]
            queue = await comfy.get("/queue")
            is_queued = prompt_id in [row[1] for rows in queue.values() for row in rows]
            history_entry = (await comfy.get(f"/history/{prompt_id}")).get(prompt_id, {})
            assert is_queued or history_entry
            assert remaining_count or history_entry


async def test_reconnected_client_receives_the_remaining_events(comfy: ComfyClient) -> None:
    path = f"/ws?clientId={comfy.id}"
    async with comfy.session.ws_connect(path) as old_socket:
        prompt_id = await comfy.queue_prompt(sleepy(2, next(_colors)))
        await receive_until(old_socket, lambda event: event["type"] == "executing")
        async with comfy.session.ws_connect(path) as new_socket:
            events = await receive_until(new_socket, lambda event: event["type"] == "executing")
            # The socket that is closed now is not the one that the client listens to.
            await old_socket.close()
            events += await receive_until(new_socket, ends_prompt(prompt_id))
    event_types = [event["type"] for event in events]
    assert {"progress_state", "executing", "executed", "execution_success"} <= set(event_types)


async def test_a_node_packages_files_reach_the_frontend(
    comfy: ComfyClient, gateway: RunningStack
) -> None:
    path = f"/extensions/{NAME}/hello.js"
    assert path in await comfy.get("/extensions")
    async with comfy.session.get(path) as response:
        assert (response.status, await response.text()) == (200, SCRIPT)
        assert response.content_type == "text/javascript"
        etag = response.headers["etag"]
    async with comfy.session.get(path, headers={"if-none-match": etag}) as response:
        assert response.status == 304
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession() as session:
        for hidden_path in (path, f"/comfy{path}"):
            async with session.get(gateway.url + hidden_path) as response:
                assert response.status == 401, hidden_path
        for other_path in (
            "", "/nothing.js", "/..%2f__init__.py", "/%2e%2e/__init__.py", "/..%252f__init__.py",
        ):  # fmt: skip
            url = URL(f"{gateway.url}/extensions/{NAME}{other_path}", encoded=True)
            async with session.get(url, headers=headers) as response:
                assert response.status == 404, other_path


@pytest.mark.parametrize("gets_event", [True, False], ids=["event", "lost event"])
async def test_any_replica_reports_the_end_of_a_prompt(farm: Farm, gets_event: bool) -> None:
    """Another replica reports the end of a prompt, even if no event of the prompt reaches it.

    It then notices the end by polling the job's row.
    """
    async with (
        farm._run_gateway() as other_replica,
        aiohttp.ClientSession(other_replica) as session,
    ):
        headers = {"authorization": f"Bearer {farm.key}"}
        async with session.ws_connect("/ws?clientId=me", headers=headers) as socket:
            await receive_until(socket, lambda event: event["type"] == "status")
            body = {"prompt": picture(1), "client_id": "me"}
            async with farm.client.post("/prompt", json=body) as response:
                prompt_id = (await response.json())["prompt_id"]
            if gets_event:
                await farm.start_worker()
                async with farm.client.post(
                    "/interrupt", json={"prompt_id": prompt_id}
                ) as interrupt_response:
                    assert interrupt_response.status == 200
            else:
                assert await farm.jobs.finish(prompt_id, 1, JobStatus.CANCELLED, None)
            events = await receive_until(socket, ends_prompt(prompt_id))
    assert "execution_interrupted" in [event["type"] for event in events]
