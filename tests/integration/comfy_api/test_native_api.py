"""Tests ComfyUI's own API of a whole farm, as ComfyUI clients use it."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.chaos.client import StackClient
from tests.chaos.graphs import picture, sleepy
from tests.stack import RunningStack
from tests.waiting import eventually

_colors = itertools.count(0x3B0000)
_PATIENCE = 120


class Comfy:
    """A client with an API key, an HTTP session and a clientId."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.id = uuid.uuid4().hex

    async def get(self, path: str) -> Any:
        async with self.session.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(path, json=body) as response:
            content = await response.read()
            return response.status, json.loads(content) if content else None

    async def queue(self, graph: dict[str, Any]) -> str:
        status, body = await self.post("/prompt", {"prompt": graph, "client_id": self.id})
        assert status == 200, body
        return str(body["prompt_id"])

    async def finished(self, prompt_id: str) -> dict[str, Any]:
        """Wait until the prompt's history entry exists, and return the entry."""
        entry: dict[str, Any] = {}

        async def is_in_history() -> bool:
            entry.update((await self.get(f"/history/{prompt_id}")).get(prompt_id, {}))
            return bool(entry)

        await eventually(is_in_history, _PATIENCE)
        return entry


@pytest.fixture(scope="module", autouse=True)
def comfyui_up(gateway: RunningStack) -> None:
    # Graphs are validated where an actor is up.
    stack_client = StackClient(gateway.url, gateway.api_key)
    job = stack_client.submit({"kind": "render", "workflow": picture(next(_colors))})
    stack_client.wait(job, {"succeeded"}, _PATIENCE)


@pytest.fixture
async def comfy(gateway: RunningStack) -> AsyncIterator[Comfy]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield Comfy(session)


@pytest.fixture
async def foreign_comfy(gateway: RunningStack) -> AsyncIterator[Comfy]:
    """Yield a client of another tenant."""
    key = gateway.run("keys", "create", f"t-{uuid.uuid4().hex[:8]}").stdout
    [secret] = [word for word in key.split() if word.startswith("moyin_")]
    async with aiohttp.ClientSession(
        gateway.url, headers={"authorization": f"Bearer {secret}"}
    ) as session:
        yield Comfy(session)


def inverting_graph(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


async def test_an_upload_is_loaded_rendered_and_viewed(comfy: Comfy) -> None:
    red = BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(red, "PNG")
    name = f"red {uuid.uuid4().hex}.png"
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", red.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        answer = await response.json()
    artifact_id = answer.pop("artifact_id")
    assert answer == {"name": name, "subfolder": "", "type": "input"}
    async with comfy.session.get(f"/artifacts/{artifact_id}") as response:
        assert await response.read() == red.getvalue()
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue(inverting_graph(name))
        events: list[dict[str, Any]] = []
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["data"].get("prompt_id") == prompt_id:
                events.append(event)
            if event["type"] == "executing" and event["data"].get("node") is None:
                break
        # The history is there before the end is told.
        entry = (await comfy.get(f"/history/{prompt_id}"))[prompt_id]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "execution_start"
    assert kinds[-2:] == ["execution_success", "executing"]
    assert {"executed", "progress_state"} <= set(kinds)
    assert entry["status"]["status_str"] == "success"
    [picture_of] = entry["outputs"]["3"]["images"]
    assert prompt_id in picture_of["subfolder"]
    async with comfy.session.get("/view", params=picture_of) as response:
        shown_picture = Image.open(BytesIO(await response.read()))
    assert shown_picture.getpixel((0, 0)) == (0, 255, 255)


async def test_a_job_loads_an_upload_by_its_name(comfy: Comfy, foreign_comfy: Comfy) -> None:
    blue_picture = BytesIO()
    Image.new("RGB", (8, 8), (0, 0, 255)).save(blue_picture, "PNG")
    name = f"blue {uuid.uuid4().hex}.png"
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", blue_picture.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        assert response.status == 200
    graph: dict[str, Any] = {"kind": "render", "workflow": inverting_graph(name)}
    resize: dict[str, Any] = {"kind": "render", "template": "resize",
              "inputs": {"image": name, "width": 4, "height": 4}}  # fmt: skip
    for body in (graph, resize):
        status, refusal = await foreign_comfy.post("/jobs", body)
        assert status == 400, refusal
    pipeline = {"kind": "pipeline", "steps": [graph, resize]}
    batch = {**resize, "batch": {"inputs": [{"image": name}, {"image": name, "width": 5}]}}
    for body, colors in (
        (pipeline, [(255, 255, 0), (0, 0, 255)]),
        (batch, [(0, 0, 255), (0, 0, 255)]),
    ):
        status, job = await comfy.post("/jobs", body)
        assert status == 202, job
        path = f"/jobs/{job['id']}"
        await eventually(partial(_has_ended, comfy, path), _PATIENCE)
        ended_job = await comfy.get(path)
        assert ended_job["status"] == "succeeded", ended_job["error"]
        shown_colors = []
        for artifact in ended_job["artifacts"]:
            async with comfy.session.get(artifact["url"]) as response:
                picture_of = Image.open(BytesIO(await response.read())).convert("RGB")
            shown_colors.append(picture_of.getpixel((0, 0)))
        assert shown_colors == colors


async def _has_ended(comfy: Comfy, path: str) -> bool:
    return (await comfy.get(path))["status"] in ("succeeded", "failed", "cancelled")


async def test_nothing_of_it_is_another_tenants(comfy: Comfy, foreign_comfy: Comfy) -> None:
    foreign_comfy.id = comfy.id
    async with foreign_comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue(picture(next(_colors)))
        queue = await foreign_comfy.get("/queue")
        assert queue == {"queue_running": [], "queue_pending": []}
        entry = await comfy.finished(prompt_id)
        assert await foreign_comfy.get(f"/history/{prompt_id}") == {}
        assert await foreign_comfy.get("/history") == {}
        assert (await foreign_comfy.get("/api/jobs"))["jobs"] == []
        [output] = entry["outputs"].values()
        async with foreign_comfy.session.get("/view", params=output["images"][0]) as response:
            assert response.status == 404
        await foreign_comfy.session.post("/interrupt", json={"prompt_id": prompt_id})
        # One prompt of one's own ends: whatever was to be heard of the other was heard before.
        own_prompt = await foreign_comfy.queue(picture(next(_colors)))
        event_types = set()
        async for message in socket:
            event = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
            event_types.add(event.get("data", {}).get("prompt_id"))
            if event.get("type") == "executing" and event["data"].get("node") is None:
                break
    assert event_types <= {None, own_prompt}


async def test_an_interrupt_hits_the_named_prompt_alone(comfy: Comfy) -> None:
    first_prompt = await comfy.queue(sleepy(4, next(_colors)))
    second_prompt = await comfy.queue(picture(next(_colors)))
    queue = await comfy.get("/queue")
    queued_prompts = {row[1] for row in [*queue["queue_running"], *queue["queue_pending"]]}
    assert {first_prompt, second_prompt} <= queued_prompts
    assert (await comfy.post("/interrupt", {"prompt_id": first_prompt}))[0] == 200
    assert (await comfy.finished(first_prompt))["status"]["status_str"] == "error"
    assert (await comfy.finished(second_prompt))["status"]["status_str"] == "success"


async def test_interrupted_prompt_keeps_its_outputs_and_reports_its_node(
    comfy: Comfy,
) -> None:
    graph = sleepy(60, next(_colors))
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "s"}}
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue(graph)
        # Which of the two nodes comes first is ComfyUI's choice.
        if "progress" not in await _receive_types(socket, "executed", prompt_id):
            await _receive_types(socket, "progress", prompt_id)
    assert (await comfy.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    # It has ended at once; what ComfyUI says of it follows when its node has stopped.
    await eventually(lambda: _has_outputs(comfy, prompt_id), _PATIENCE)
    entry = await comfy.finished(prompt_id)
    *_, (kind, last_message) = entry["status"]["messages"]
    assert (kind, last_message["node_id"], last_message["node_type"]) == (
        "execution_interrupted",
        "3",
        "TestSleep",
    )
    assert sorted(last_message["executed"]) == ["1", "4"]
    [file] = entry["outputs"]["4"]["images"]
    async with comfy.session.get("/view", params=file) as response:
        assert response.status == 200
    assert (await comfy.get(f"/jobs/{prompt_id}"))["status"] == "cancelled"


async def test_waiting_prompts_are_removed_from_the_queue(comfy: Comfy) -> None:
    running_prompt = await comfy.queue(sleepy(60, next(_colors)))
    await eventually(lambda: _is_running(comfy, running_prompt), _PATIENCE)
    waiting_prompts = [await comfy.queue(picture(next(_colors))) for _ in range(3)]
    # What runs is none of its business.
    assert (await comfy.post("/queue", {"delete": [running_prompt, waiting_prompts[0]]}))[0] == 200
    pending = {row[1] for row in (await comfy.get("/queue"))["queue_pending"]}
    assert not pending & {running_prompt, waiting_prompts[0]}
    assert pending >= set(waiting_prompts[1:])
    assert (await comfy.post("/queue", {"clear": True}))[0] == 200
    queue = await comfy.get("/queue")
    assert queue["queue_pending"] == []
    assert [row[1] for row in queue["queue_running"]] == [running_prompt]
    for prompt_id in waiting_prompts:
        [(name, _)] = (await comfy.finished(prompt_id))["status"]["messages"]
        assert name == "execution_interrupted"
    assert (await comfy.post("/interrupt", {}))[0] == 200
    assert (await comfy.finished(running_prompt))["status"]["completed"] is False


async def test_a_reconnected_client_receives_the_remaining_messages_in_every_window(
    comfy: Comfy,
) -> None:
    address = f"/ws?clientId={comfy.id}"
    async with comfy.session.ws_connect(address) as second_socket:
        async with comfy.session.ws_connect(address) as socket:
            prompt_id = await comfy.queue(sleepy(60, next(_colors)))
            assert "progress" in await _receive_types(socket, "progress", prompt_id)
        async with comfy.session.ws_connect(address) as socket:
            # Where it is comes first.
            kinds = await _receive_types(socket, "executing", prompt_id)
            assert kinds == ["progress_state", "executing"]
            await comfy.post("/interrupt", {"prompt_id": prompt_id})
            kinds += await _receive_types(socket, "execution_interrupted", prompt_id)
            assert set(kinds) <= {"progress_state", "executing", "progress", kinds[-1]}
        assert "execution_start" in await _receive_types(
            second_socket, "execution_interrupted", prompt_id
        )


async def test_a_bad_graph_is_refused_in_comfyuis_words(comfy: Comfy) -> None:
    graph = {"9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    status, body = await comfy.post("/prompt", {"prompt": graph})
    assert status == 400
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert body["node_errors"]["9"]["errors"][0]["type"] == "required_input_missing"
    assert body["code"]
    assert body["request_id"]


async def test_a_prompt_id_of_ones_own_is_kept(comfy: Comfy) -> None:
    chosen_id = str(uuid.uuid4())
    graph = picture(next(_colors))
    for _ in range(2):
        status, body = await comfy.post("/prompt", {"prompt": graph, "prompt_id": chosen_id})
        assert (status, body["prompt_id"]) == (200, chosen_id)
    assert (await comfy.finished(chosen_id))["status"]["completed"] is True
    other_body = {"prompt": picture(next(_colors)), "prompt_id": chosen_id}
    status, body = await comfy.post("/prompt", other_body)
    assert (status, body["code"]) == (400, "prompt_id_taken")


async def _has_outputs(comfy: Comfy, prompt_id: str) -> bool:
    return bool((await comfy.finished(prompt_id))["outputs"])


async def _is_running(comfy: Comfy, prompt_id: str) -> bool:
    return any(row[1] == prompt_id for row in (await comfy.get("/queue"))["queue_running"])


async def _receive_types(
    socket: aiohttp.ClientWebSocketResponse, last_type: str, prompt_id: str
) -> list[str]:
    """Return the types of the messages about the prompt, up to ``last_type``."""
    kinds: list[str] = []
    while last_type not in kinds:
        event = json.loads((await socket.receive(timeout=_PATIENCE)).data)
        if event["data"].get("prompt_id") == prompt_id:
            kinds.append(event["type"])
    return kinds
