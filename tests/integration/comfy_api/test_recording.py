"""Compares the responses of a plain ComfyUI and of the farm to the same requests."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from moyin.render.comfyui.install import ComfyUI
from tests.chaos.client import StackClient
from tests.chaos.graphs import picture
from tests.integration.comfy_api.recording import Recorder, Scene
from tests.integration.render.fixtures import TEST_NODES
from tests.integration.servers import free_port
from tests.nodes import write_nodes
from tests.stack import RunningStack
from tests.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(480)]
_UP_SECONDS = 120
_SHIPPED = "custom_nodes/websocket_image_save.py"
_UPLOAD = f"red {uuid.uuid4().hex[:8]}.png"
_WORKFLOW = {"extra_pnginfo": {"workflow": {"id": "w", "nodes": [1, 2]}, "note": "ä"}}
Graph = dict[str, Any]
Recording = Mapping[str, Any]


def _encode_png(*color: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGBA"[: len(color)], (6, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


_RED, _GREEN, _MASK = _encode_png(255, 0, 0), _encode_png(0, 255, 0), _encode_png(0, 0, 0, 90)


def _build_node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _build_empty_image_node(color: int, **inputs: int) -> dict[str, Any]:
    return _build_node(
        "EmptyImage", **{"width": 8, "height": 8, "batch_size": 1, **inputs}, color=color
    )


def _save_node(node: str, prefix: str = "p") -> dict[str, Any]:
    return _build_node("SaveImage", images=[node, 0], filename_prefix=prefix)


# What one of them leaves in ComfyUI's cache, the next may find there: their order is the story.
_PLAIN: Graph = {"1": _build_empty_image_node(0x710001), "2": _save_node("1", "sub/p")}
_SCALED: Graph = {
    "1": _build_empty_image_node(0x710002),
    "2": _build_node(
        "ImageScale",
        image=["1", 0],
        upscale_method="bilinear",
        width=16,
        height=12,
        crop="disabled",
    ),
    "3": _build_node("PreviewImage", images=["2", 0]),
}
_BATCH: Graph = {
    "10": _build_empty_image_node(0x710003),
    "9": _build_empty_image_node(0x710004),
    "3": _build_node("ImageBatch", image1=["10", 0], image2=["9", 0]),
    "4": _save_node("3"),
}
_LOADED: Graph = {
    "1": _build_node("LoadImage", image=_UPLOAD),
    "2": _build_node("ImageInvert", image=["1", 0]),
    "3": _save_node("2"),
}
_TWO: Graph = {
    "1": _build_empty_image_node(0x710005),
    "2": _build_node("ImageInvert", image=["1", 0]),
    "3": _save_node("1"),
    "4": _build_node("PreviewImage", images=["2", 0]),
}
_STEPS: Graph = {
    "1": _build_empty_image_node(0x710006, batch_size=3),
    "2": _build_node("TestAsyncBatchProcessing", images=["1", 0], process_time_per_item=0.01),
    "3": _save_node("2"),
}
_SOCKET: Graph = {
    "1": _build_empty_image_node(0x710007, batch_size=2),
    "2": _build_node("SaveImageWebsocket", images=["1", 0]),
}
# Nodes that make other nodes: twice round the loop.
_GROWING: Graph = {
    "1": _build_empty_image_node(0x71000B),
    "2": _build_node("TestForLoopOpen", remaining=2, initial_value1=["1", 0]),
    "3": _build_node("ImageInvert", image=["2", 2]),
    "4": _build_node("TestForLoopClose", flow_control=["2", 0], initial_value1=["3", 0]),
    "5": _save_node("4"),
}
# Of the two images, only the first is ever made.
_LAZY: Graph = {
    "1": _build_empty_image_node(0x71000C),
    "2": _build_empty_image_node(0x71000D),
    "3": _build_node("SolidMask", value=0.0, width=8, height=8),
    "4": _build_node("TestLazyMixImages", image1=["1", 0], image2=["2", 0], mask=["3", 0]),
    "5": _save_node("4"),
}
_FAILING: Graph = {
    "1": _build_empty_image_node(0x710008),
    "2": _build_node("TestSyncError", value=["1", 0]),
    "3": _save_node("2"),
}
_HALF: Graph = {
    "1": _build_empty_image_node(0x710009),
    "2": _save_node("1"),
    "3": _build_node("SaveImage", filename_prefix="q"),
}
_WRONG: Graph = {
    "1": _build_empty_image_node(1, width=-1),
    "2": _build_node(
        "ImageScale", image=["1", 0], upscale_method="none", width=4, height=4, crop="disabled"
    ),
    "3": _save_node("2"),
}
_SLOW: Graph = {
    "1": _build_empty_image_node(0x71000A),
    "2": _build_node("TestSleep", value=["1", 0], seconds=600.0),
    "3": _save_node("2"),
}
_TEXT: Graph = {"7": _build_node("PreviewAny", source="two\nlines")}

SCENES = [
    Scene(name="a picture", graphs=[_PLAIN], further_members={"extra_data": _WORKFLOW}),
    Scene(
        name="the same again", graphs=[_PLAIN, _PLAIN], further_members={"extra_data": _WORKFLOW}
    ),
    Scene(name="a preview", graphs=[_SCALED]),
    Scene(name="a batch", graphs=[_BATCH]),
    Scene(name="an upload", graphs=[_LOADED]),
    Scene(name="two outputs", graphs=[_TWO]),
    Scene(name="one of two", graphs=[_TWO], further_members={"partial_execution_targets": ["4"]}),
    Scene(name="text", graphs=[_TEXT]),
    Scene(name="steps", graphs=[_STEPS]),
    Scene(name="pictures on the socket", graphs=[_SOCKET]),
    Scene(name="pictures with metadata", graphs=[_SOCKET], features=True),
    Scene(name="a graph that grows", graphs=[_GROWING]),
    Scene(name="a lazy graph", graphs=[_LAZY]),
    Scene(name="a failure", graphs=[_FAILING]),
    Scene(name="partly refused", graphs=[_HALF]),
    Scene(name="refused", graphs=[{"3": _HALF["3"]}]),
    Scene(name="wrong values", graphs=[_WRONG]),
    Scene(name="an unknown node", graphs=[{"1": _build_node("NoSuchNode")}]),
    Scene(name="no outputs", graphs=[{"1": _build_empty_image_node(1)}]),
    Scene(name="interrupted", graphs=[_SLOW, _PLAIN], interrupted=True),
]
_UNKNOWN = str(uuid.UUID(int=0))
# Before any prompt, and after all of them.
BEFORE: list[tuple[str, str, Any]] = [
    ("GET", "/prompt", None),
    ("GET", "/api/queue", None),
    ("GET", "/history", None),
    ("GET", f"/history/{_UNKNOWN}", None),
    ("GET", "/object_info/EmptyImage", None),
    ("GET", "/object_info/NoSuchNode", None),
    ("GET", "/embeddings", None),
    ("GET", "/models", None),
    ("GET", "/models/upscale_models", None),
    ("GET", "/models/no_such_folder", None),
    ("GET", "/extensions", None),
    ("GET", f"/view?filename={_UNKNOWN}.png", None),
    ("GET", "/view?filename=..%2Fx.png", None),
    ("GET", "/view", None),
    ("POST", "/prompt", {}),
    ("POST", "/interrupt", {"prompt_id": _UNKNOWN}),
    ("POST", "/queue", {"delete": [_UNKNOWN]}),
    ("POST", "/history", {"delete": [_UNKNOWN]}),
    ("POST", "/free", {"unload_models": False}),
]
AFTER: list[tuple[str, str, Any]] = [
    ("GET", "/object_info/LoadImage", None),
    ("POST", "/queue", {"clear": True}),
    ("GET", "/queue", None),
    ("GET", "/prompt", None),
    ("POST", "/history", {"clear": True}),
    ("GET", "/history", None),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def comfyui_url(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Start a ComfyUI without any part of Moyin, and yield its URL."""
    folder = tmp_path_factory.mktemp("plain")
    folder.joinpath("custom_nodes").mkdir()
    # Those of the farm (`tests.stack`).
    packages = [comfyui.home / TEST_NODES, write_nodes(folder), comfyui.home / _SHIPPED]
    for package in packages:
        folder.joinpath("custom_nodes", package.name).symlink_to(package)
    port = free_port()
    command = [
        str(comfyui.python), str(comfyui.home / "main.py"), "--cpu",
        *("--listen", "127.0.0.1", "--port", str(port)),
        *("--base-directory", str(folder), "--database-url", f"sqlite:///{folder}/db"),
        *("--disable-auto-launch", "--disable-api-nodes", "--preview-method", "auto"),
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *(p.name for p in packages)),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with folder.joinpath("log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(url) as session:
            await eventually(lambda: _is_answering(session), _UP_SECONDS)
        yield url
    finally:
        process.kill()
        await process.wait()


async def _is_answering(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/prompt") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recordings(comfyui_url: str, gateway: RunningStack) -> tuple[Recording, Recording]:
    """Return the recordings of ComfyUI and of the farm, by scene."""
    # Graphs are validated where an actor is up.
    stack_client = StackClient(gateway.url, gateway.api_key)
    job = await asyncio.to_thread(
        stack_client.submit, {"kind": "render", "workflow": picture(uuid.uuid4().int & 0xFFFFFF)}
    )
    await asyncio.to_thread(stack_client.wait, job, {"succeeded"}, _UP_SECONDS)
    # A tenant without a history.
    key_output = await asyncio.to_thread(gateway.run, "keys", "create", f"t-{uuid.uuid4().hex[:8]}")
    [key] = [word for word in key_output.stdout.split() if word.startswith("moyin_")]
    comfyui_recording, farm_recording = await asyncio.gather(
        _record_all(comfyui_url), _record_all(gateway.url, key)
    )
    return comfyui_recording, farm_recording


async def _record_all(url: str, key: str | None = None) -> Recording:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        recorder = Recorder(session, {_UPLOAD: _RED})
        recording: dict[str, Any] = {
            "before": [await recorder.send_request(*call) for call in BEFORE]
        }
        recording["uploads"] = await _upload_files(recorder)
        for scene in SCENES:
            recording[scene.name] = await recorder.play(scene)
        recording["after"] = [await recorder.send_request(*call) for call in AFTER]
    return recording


async def _upload_files(recorder: Recorder) -> list[Any]:
    responses = [await recorder.upload(_UPLOAD, content) for content in (_RED, _RED, _GREEN)]
    mask_name, original_ref = (
        f"mask of {_UPLOAD}",
        json.dumps({"filename": _UPLOAD, "type": "input"}),
    )
    responses.append(
        await recorder.upload(mask_name, _MASK, "/upload/mask", original_ref=original_ref)
    )
    for query in (
        {"filename": _UPLOAD, "type": "input"},
        {"filename": f"{_UPLOAD} [input]"},
        {"filename": mask_name, "type": "input"},
        {"filename": mask_name, "type": "input", "channel": "a"},
        {"filename": mask_name, "type": "input", "channel": "rgb"},
        {"filename": mask_name, "type": "input", "preview": "webp;100"},
        {"filename": _UPLOAD, "type": "input", "preview": "jpeg"},
        {"filename": f"no {_UPLOAD}", "type": "input"},
    ):
        responses.append(await recorder.view_file(**query))
    return responses


@pytest.mark.parametrize("name", ["before", "uploads", *(s.name for s in SCENES), "after"])
async def test_the_farm_responds_like_one_comfyui(
    recordings: tuple[Recording, Recording], name: str
) -> None:
    comfyui_recording, farm_recording = recordings
    assert farm_recording[name] == comfyui_recording[name]
