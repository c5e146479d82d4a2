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
_TIMEOUT_SECONDS = 120


class ComfyClient:
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

    async def queue_prompt(self, graph: dict[str, Any]) -> str:
        status, body = await self.post("/prompt", {"prompt": graph, "client_id": self.id})
        assert status == 200, body
        return str(body["prompt_id"])

    async def wait_until_finished(self, prompt_id: str) -> dict[str, Any]:
        """Wait until the prompt's history entry exists, and return the entry."""
        history_entry: dict[str, Any] = {}

        async def is_in_history() -> bool:
            history_entry.update((await self.get(f"/history/{prompt_id}")).get(prompt_id, {}))
            return bool(history_entry)

        await eventually(is_in_history, _TIMEOUT_SECONDS)
        return history_entry


@pytest.fixture(scope="module", autouse=True)
def comfyui_up(gateway: RunningStack) -> None:
    # Graphs are validated where an actor is up.
    stack_client = StackClient(gateway.url, gateway.api_key)
    job_id = stack_client.submit({"kind": "render", "workflow": picture(next(_colors))})
    stack_client.wait(job_id, {"succeeded"}, _TIMEOUT_SECONDS)


@pytest.fixture
async def comfy(gateway: RunningStack) -> AsyncIterator[ComfyClient]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield ComfyClient(session)


@pytest.fixture
async def foreign_comfy(gateway: RunningStack) -> AsyncIterator[ComfyClient]:
    """Yield a client of another tenant."""
    key = gateway.run("keys", "create", f"t-{uuid.uuid4().hex[:8]}").stdout
    [secret] = [word for word in key.split() if word.startswith("moyin_")]
    async with aiohttp.ClientSession(
        gateway.url, headers={"authorization": f"Bearer {secret}"}
    ) as session:
        yield ComfyClient(session)


def build_inverting_graph(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


async def test_an_upload_is_loaded_rendered_and_viewed(comfy: ComfyClient) -> None:
    red_picture = BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(red_picture, "PNG")
    name = f"red {uuid.uuid4().hex}.png"
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", red_picture.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        response_body = await response.json()
    artifact_id = response_body.pop("artifact_id")
    assert response_body == {"name": name, "subfolder": "", "type": "input"}
    async with comfy.session.get(f"/artifacts/{artifact_id}") as response:
        assert await response.read() == red_picture.getvalue()
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue_prompt(build_inverting_graph(name))
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
        history_entry = (await comfy.get(f"/history/{prompt_id}"))[prompt_id]
    event_types = [event["type"] for event in events]
    assert event_types[0] == "execution_start"
    assert event_types[-2:] == ["execution_success", "executing"]
    assert {"executed", "progress_state"} <= set(event_types)
    assert history_entry["status"]["status_str"] == "success"
    [picture_file] = history_entry["outputs"]["3"]["images"]
    assert prompt_id in picture_file["subfolder"]
    async with comfy.session.get("/view", params=picture_file) as response:
        shown_picture = Image.open(BytesIO(await response.read()))
    assert shown_picture.getpixel((0, 0)) == (0, 255, 255)


async def test_a_job_loads_an_upload_by_its_name(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    blue_picture = BytesIO()
    Image.new("RGB", (8, 8), (0, 0, 255)).save(blue_picture, "PNG")
    name = f"blue {uuid.uuid4().hex}.png"
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", blue_picture.getvalue(), filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        assert response.status == 200
    graph_job: dict[str, Any] = {"kind": "render", "workflow": build_inverting_graph(name)}
    resize_job: dict[str, Any] = {"kind": "render", "template": "resize",
              "inputs": {"image": name, "width": 4, "height": 4}}  # fmt: skip
    for body in (graph_job, resize_job):
        status, error = await foreign_comfy.post("/jobs", body)
        assert status == 400, error
    pipeline = {"kind": "pipeline", "steps": [graph_job, resize_job]}
    batch = {**resize_job, "batch": {"inputs": [{"image": name}, {"image": name, "width": 5}]}}
    for body, colors in (
        (pipeline, [(255, 255, 0), (0, 0, 255)]),
        (batch, [(0, 0, 255), (0, 0, 255)]),
    ):
        status, job = await comfy.post("/jobs", body)
        assert status == 202, job
        path = f"/jobs/{job['id']}"
        await eventually(partial(_has_ended, comfy, path), _TIMEOUT_SECONDS)
        ended_job = await comfy.get(path)
        assert ended_job["status"] == "succeeded", ended_job["error"]
        shown_colors = []
        for artifact in ended_job["artifacts"]:
            async with comfy.session.get(artifact["url"]) as response:
                shown_picture = Image.open(BytesIO(await response.read())).convert("RGB")
            shown_colors.append(shown_picture.getpixel((0, 0)))
        assert shown_colors == colors


async def _has_ended(comfy: ComfyClient, path: str) -> bool:
    return (await comfy.get(path))["status"] in ("succeeded", "failed", "cancelled")


async def test_other_tenants_see_nothing_of_a_prompt(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    foreign_comfy.id = comfy.id
    async with foreign_comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue_prompt(picture(next(_colors)))
        queue = await foreign_comfy.get("/queue")
        assert queue == {"queue_running": [], "queue_pending": []}
        history_entry = await comfy.wait_until_finished(prompt_id)
        assert await foreign_comfy.get(f"/history/{prompt_id}") == {}
        assert await foreign_comfy.get("/history") == {}
        assert (await foreign_comfy.get("/api/jobs"))["jobs"] == []
        [output] = history_entry["outputs"].values()
        async with foreign_comfy.session.get("/view", params=output["images"][0]) as response:
            assert response.status == 404
        await foreign_comfy.session.post("/interrupt", json={"prompt_id": prompt_id})
        # One prompt of one's own ends: whatever was to be heard of the other was heard before.
        own_prompt = await foreign_comfy.queue_prompt(picture(next(_colors)))
        seen_prompt_ids = set()
        async for message in socket:
            event = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
            seen_prompt_ids.add(event.get("data", {}).get("prompt_id"))
            if event.get("type") == "executing" and event["data"].get("node") is None:
                break
    assert seen_prompt_ids <= {None, own_prompt}


async def test_interrupting_a_prompt_leaves_the_next_one_alone(comfy: ComfyClient) -> None:
    first_prompt = await comfy.queue_prompt(sleepy(4, next(_colors)))
    second_prompt = await comfy.queue_prompt(picture(next(_colors)))
    queue = await comfy.get("/queue")
    queued_prompts = {row[1] for row in [*queue["queue_running"], *queue["queue_pending"]]}
    assert {first_prompt, second_prompt} <= queued_prompts
    assert (await comfy.post("/interrupt", {"prompt_id": first_prompt}))[0] == 200
    assert (await comfy.wait_until_finished(first_prompt))["status"]["status_str"] == "error"
    assert (await comfy.wait_until_finished(second_prompt))["status"]["status_str"] == "success"


async def test_interrupted_prompt_keeps_its_outputs_and_reports_its_node(
    comfy: ComfyClient,
) -> None:
    graph = sleepy(60, next(_colors))
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "s"}}
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue_prompt(graph)
        # Which of the two nodes comes first is ComfyUI's choice.
        if "progress" not in await _receive_types(socket, "executed", prompt_id):
            await _receive_types(socket, "progress", prompt_id)
    assert (await comfy.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    # It has ended at once; what ComfyUI says of it follows when its node has stopped.
    await eventually(lambda: _has_outputs(comfy, prompt_id), _TIMEOUT_SECONDS)
    history_entry = await comfy.wait_until_finished(prompt_id)
    *_, (message_type, last_message) = history_entry["status"]["messages"]
    assert (message_type, last_message["node_id"], last_message["node_type"]) == (
        "execution_interrupted",
        "3",
        "TestSleep",
    )
    assert sorted(last_message["executed"]) == ["1", "4"]
    [file] = history_entry["outputs"]["4"]["images"]
    async with comfy.session.get("/view", params=file) as response:
        assert response.status == 200
    assert (await comfy.get(f"/jobs/{prompt_id}"))["status"] == "cancelled"


async def test_waiting_prompts_are_removed_from_the_queue(comfy: ComfyClient) -> None:
    running_prompt = await comfy.queue_prompt(sleepy(60, next(_colors)))
    await eventually(lambda: _is_running(comfy, running_prompt), _TIMEOUT_SECONDS)
    waiting_prompts = [await comfy.queue_prompt(picture(next(_colors))) for _ in range(3)]
    # What runs is none of its business.
    assert (await comfy.post("/queue", {"delete": [running_prompt, waiting_prompts[0]]}))[0] == 200
    pending_prompts = {row[1] for row in (await comfy.get("/queue"))["queue_pending"]}
    assert not pending_prompts & {running_prompt, waiting_prompts[0]}
    assert pending_prompts >= set(waiting_prompts[1:])
    assert (await comfy.post("/queue", {"clear": True}))[0] == 200
    queue = await comfy.get("/queue")
    assert queue["queue_pending"] == []
    assert [row[1] for row in queue["queue_running"]] == [running_prompt]
    for prompt_id in waiting_prompts:
        [(message_type, _)] = (await comfy.wait_until_finished(prompt_id))["status"]["messages"]
        assert message_type == "execution_interrupted"
    assert (await comfy.post("/interrupt", {}))[0] == 200
    assert (await comfy.wait_until_finished(running_prompt))["status"]["completed"] is False


async def test_a_reconnected_client_receives_the_remaining_messages_in_every_window(
    comfy: ComfyClient,
) -> None:
    socket_path = f"/ws?clientId={comfy.id}"
    async with comfy.session.ws_connect(socket_path) as second_socket:
        async with comfy.session.ws_connect(socket_path) as socket:
            prompt_id = await comfy.queue_prompt(sleepy(60, next(_colors)))
            assert "progress" in await _receive_types(socket, "progress", prompt_id)
        async with comfy.session.ws_connect(socket_path) as socket:
            # Where it is comes first.
            event_types = await _receive_types(socket, "executing", prompt_id)
            assert event_types == ["progress_state", "executing"]
            await comfy.post("/interrupt", {"prompt_id": prompt_id})
            event_types += await _receive_types(socket, "execution_interrupted", prompt_id)
            assert set(event_types) <= {"progress_state", "executing", "progress", event_types[-1]}
        assert "execution_start" in await _receive_types(
            second_socket, "execution_interrupted", prompt_id
        )


async def test_invalid_graph_is_refused_with_comfyuis_errors(comfy: ComfyClient) -> None:
    graph = {"9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    status, body = await comfy.post("/prompt", {"prompt": graph})
    assert status == 400
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert body["node_errors"]["9"]["errors"][0]["type"] == "required_input_missing"
    assert body["code"]
    assert body["request_id"]


def build_chain(length: int) -> dict[str, Any]:
    first = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1}}
    links = {
        str(n): {"class_type": "ImageInvert", "inputs": {"image": [str(n - 1), 0]}}
        for n in range(1, length)
    }
    save = {"class_type": "PreviewImage", "inputs": {"images": [str(length - 1), 0]}}
    return {"0": first, **links, "save": save}


async def test_every_door_refuses_a_large_graph(comfy: ComfyClient) -> None:
    graph = build_chain(60_000)
    for path, body in (
        ("/prompt", {"prompt": graph}),
        ("/api/prompt", {"prompt": graph}),
        ("/jobs", {"kind": "render", "workflow": graph}),
        ("/jobs", {"kind": "pipeline", "steps": [{"kind": "render", "workflow": graph}]}),
        ("/api/v2/jobs", {"workflow": graph}),
        ("/graphs/convert", {"graph": graph}),
    ):
        # As a file, because aiohttp warns of large bodies in memory.
        content = BytesIO(json.dumps(body).encode())
        async with comfy.session.post(path, data=content) as response:
            problem = await response.json(content_type=None)
            assert response.status == 413, (path, problem)
        error = problem.get("error", problem)
        details = error.get("extra_info") or error.get("details") or problem
        details = problem if not isinstance(details, dict) else details
        assert (details["bound"], details["max"], details["actual"]) == ("nodes", 5_000, 60_001)


async def test_chains_up_to_the_bound_pass_comfyuis_validation(comfy: ComfyClient) -> None:
    status, body = await comfy.post("/prompt", {"prompt": build_chain(399)})
    assert status == 200, body
    await comfy.post("/interrupt", {"prompt_id": body["prompt_id"]})
    await comfy.post("/queue", {"delete": [body["prompt_id"]]})
    status, body = await comfy.post("/prompt", {"prompt": build_chain(400)})
    assert (status, body["code"], body["error"]["type"]) == (
        413,
        "graph_too_large",
        "graph_too_large",
    )
    assert body["error"]["extra_info"] == {
        "bound": "depth",
        "max": 400,
        "actual": 401,
        "node": "save",
    }


async def test_a_circle_of_links_names_a_node(comfy: ComfyClient) -> None:
    graph = build_chain(3)
    graph["1"]["inputs"]["image"] = ["2", 0]
    status, body = await comfy.post("/prompt", {"prompt": graph})
    assert (status, body["code"]) == (400, "invalid_graph")
    assert body["node_errors"].keys() <= {"1", "2"} and body["node_errors"]


async def test_another_tenants_prompt_id_is_as_good_as_an_unused_one(
    comfy: ComfyClient, foreign_comfy: ComfyClient
) -> None:
    """Let two tenants choose the same id: each has a prompt of its own, with its own picture."""
    chosen_id = str(uuid.uuid4())
    for client in (comfy, foreign_comfy):
        graph = picture(next(_colors))
        body = {"prompt": graph, "prompt_id": chosen_id, "client_id": client.id}
        async with client.session.ws_connect(f"/ws?clientId={client.id}") as socket:
            status, accepted = await client.post("/prompt", body)
            assert (status, accepted["prompt_id"]) == (200, chosen_id), accepted
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                assert event["data"].get("prompt_id", chosen_id) == chosen_id
                if event["type"] == "executing" and event["data"].get("node") is None:
                    break
        entry = (await client.get(f"/history/{chosen_id}"))[chosen_id]
        assert entry["prompt"][1:3] == [chosen_id, graph]
        [output] = [output for output in entry["outputs"].values() if "images" in output]
        [image] = output["images"]
        async with client.session.get("/view", params=image) as response:
            assert response.status == 200
        assert (await client.get(f"/jobs/{chosen_id}"))["status"] == "succeeded"


async def test_prompt_id_that_the_client_chose_is_kept(comfy: ComfyClient) -> None:
    chosen_id = str(uuid.uuid4())
    graph = picture(next(_colors))
    for _ in range(2):
        status, body = await comfy.post("/prompt", {"prompt": graph, "prompt_id": chosen_id})
        assert (status, body["prompt_id"]) == (200, chosen_id)
    assert (await comfy.wait_until_finished(chosen_id))["status"]["completed"] is True
    other_body = {"prompt": picture(next(_colors)), "prompt_id": chosen_id}
    status, body = await comfy.post("/prompt", other_body)
    assert (status, body["code"]) == (400, "prompt_id_taken")


async def _has_outputs(comfy: ComfyClient, prompt_id: str) -> bool:
    return bool((await comfy.wait_until_finished(prompt_id))["outputs"])


async def _is_running(comfy: ComfyClient, prompt_id: str) -> bool:
    return any(row[1] == prompt_id for row in (await comfy.get("/queue"))["queue_running"])


async def _receive_types(
    socket: aiohttp.ClientWebSocketResponse, last_type: str, prompt_id: str
) -> list[str]:
    """Return the types of the messages about the prompt, up to ``last_type``."""
    event_types: list[str] = []
    while last_type not in event_types:
        event = json.loads((await socket.receive(timeout=_TIMEOUT_SECONDS)).data)
        if event["data"].get("prompt_id") == prompt_id:
            event_types.append(event["type"])
    return event_types
