"""Tests on a whole farm that clients never see paths of the machine on which ComfyUI runs."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.comfy_api.test_native_api import ComfyClient, comfy, comfyui_up
from tests.stack import RunningStack

__all__ = ["comfy", "comfyui_up"]

_FAILING = {
    # A stock node: Pillow names the file that it can't read.
    "stock": ("LoadImage", "cannot identify image file"),
    "testing pack": ("TestSyncError", "Intentional sync execution error"),
    "node package": ("Reads", "No such file or directory: '<scratch>/nope/"),
}


def _list_forbidden_roots(gateway: RunningStack) -> set[str]:
    roots = {
        gateway.env["MOYIN_COMFYUI_HOME"],
        str(Path(gateway.env["MOYIN_COMFYUI_PYTHON"]).parent.parent),
        str(gateway.data),
        str(gateway.data.parent),
        sys.prefix,
        sys.base_prefix,
        f"{Path.home()}/",
        "/etc/",
    }
    return roots | {str(Path(root).resolve()) for root in roots}


def _find_leaks(gateway: RunningStack, text: str) -> set[str]:
    unescaped_text = text.replace("\\/", "/")
    return {root for root in _list_forbidden_roots(gateway) if root in unescaped_text}


async def _upload_broken_picture(comfy: ComfyClient) -> str:
    name = f"{uuid.uuid4().hex}.png"
    form = aiohttp.FormData()
    form.add_field("image", b"no picture", filename=name, content_type="image/png")
    async with comfy.session.post("/upload/image", data=form) as response:
        assert response.status == 200, await response.text()
    return name


async def _build_failing_graph(comfy: ComfyClient, node_kind: str) -> dict[str, Any]:
    if node_kind == "stock":
        return {
            "1": {
                "class_type": "LoadImage",
                "inputs": {"image": await _upload_broken_picture(comfy)},
            },
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
    if node_kind == "testing pack":
        return {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1},
            },
            "2": {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        }
    return {"1": {"class_type": "Reads", "inputs": {"text": f"nope/{uuid.uuid4().hex}"}}}


@pytest.mark.parametrize("node_kind", _FAILING)
async def test_a_real_error_names_no_path_of_the_machine(
    gateway: RunningStack, comfy: ComfyClient, node_kind: str
) -> None:
    node, message = _FAILING[node_kind]
    responses: list[str] = []
    async with comfy.session.ws_connect(f"/ws?clientId={comfy.id}") as socket:
        prompt_id = await comfy.queue_prompt(await _build_failing_graph(comfy, node_kind))
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(frame.data)
            if event["data"].get("prompt_id") != prompt_id:
                continue
            responses.append(frame.data)
            if event["type"] == "execution_error":
                failure = event["data"]
                break
    assert (failure["node_type"], message in failure["exception_message"]) == (node, True), failure
    trace = "".join(failure["traceback"])
    assert 'File "<comfyui>/execution.py"' in trace, "it still says where it came from"
    await comfy.wait_until_finished(prompt_id)
    for path in (
        f"/history/{prompt_id}", "/history", f"/api/jobs/{prompt_id}", "/api/jobs", f"/jobs/{prompt_id}",
        "/jobs", f"/api/v2/jobs/{prompt_id}",
    ):  # fmt: skip
        responses.append(json.dumps(await comfy.get(path), ensure_ascii=False))
    async with comfy.session.get(f"/jobs/{prompt_id}/events") as stream:
        responses.append(await stream.text())
    job = await comfy.get(f"/jobs/{prompt_id}")
    assert message in job["error"]["message"]
    assert not [(text[:200], leaks) for text in responses if (leaks := _find_leaks(gateway, text))]


async def test_a_refusal_names_no_path_of_the_machine(
    gateway: RunningStack, comfy: ComfyClient
) -> None:
    named_path = f"{gateway.data}/nope.png"
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": named_path}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    for path, body in (
        ("/prompt", {"prompt": graph}),
        ("/jobs", {"kind": "render", "workflow": graph}),
    ):
        status, response_body = await comfy.post(path, body)
        assert status == 400, response_body
        body_json = json.dumps(response_body)
        # A client may hear its own words again, and nothing that they would have led to.
        assert not _find_leaks(gateway, body_json.replace(named_path, "")), body_json


async def test_farm_responses_name_no_path_of_the_machine(
    gateway: RunningStack, comfy: ComfyClient
) -> None:
    for path in (
        "/system_stats", "/object_info", "/models", "/embeddings", "/experiment/models", "/extensions",
        "/features", "/i18n", "/workflow_templates", "/internal/logs", "/internal/logs/raw",
        "/internal/folder_paths", "/readyz", "/models/checkpoints", "/experiment/models/checkpoints",
    ):  # fmt: skip
        async with comfy.session.get(path) as response:
            text = await response.text()
            assert response.status in (200, 404), (path, text)
            assert not _find_leaks(gateway, text), path
    stats = await comfy.get("/system_stats")
    assert stats["system"]["argv"] == ["moyin"]
