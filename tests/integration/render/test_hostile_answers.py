"""Tests that a node package which answers for ComfyUI breaks no prompt but its own.

The package runs in a real ComfyUI, whose routes it replaces as any package could.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from moyin.domain.renderer import RenderRequest, RenderSucceeded
from moyin.errors import MoyinError, RenderFailed, StepFailed, WorkerLost
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore
from tests.integration.render.fixtures import blobs, build_picture_graph, options
from tests.integration.render.hostile import build_hostile_graph, write_hostile_nodes
from tests.waiting import eventually

__all__ = ["blobs", "options"]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
# Replaces the handler of the route that Moyin polls; `given` is the body to respond with.
_ANSWER_FOR_COMFYUI = """
import sys
from aiohttp import web

body = given

async def look(request):
    return web.Response(text=body, content_type="application/json")

for route in sys.modules["server"].PromptServer.instance.app.router.routes():
    if route.resource is not None and route.resource.canonical.endswith("/moyin/look"):
        route._handler = look
"""
# Sends what a broken or hostile node may send to the WebSocket, then a valid output.
_SEND_HOSTILE_MESSAGES = """
import struct, sys

server = sys.modules["server"].PromptServer.instance
deep = {"prompt_id": given, "node_id": []}
for _ in range(300):
    deep = {"node_id": deep}
for number in range(20_000):
    server.send_sync("progress", {"value": number, "max": float("nan"), "prompt_id": given, "node": "1"})
for number in range(50):
    server.send_sync(1, struct.pack(">I", 1) + b"\\xff\\xd8\\xff" + bytes(1024 * 1024))
server.send_sync(77, b"x")
server.send_sync("executed", {"node": "1", "prompt_id": given, "output": deep})
server.send_sync("progress_state", {"prompt_id": given, "nodes": {"1": {"value": [], "max": "9" * 400}}})
files.append("half of a pair: \\ud83d")
"""
# Writes an output file, or only pretends to have written one.
_WRITE_AND_REPORT = """
from pathlib import Path

if given["write"]:
    Path(folder_paths.get_output_directory(), given["name"]).write_bytes(b"the tenant's own")
files.append({"filename": given["name"], "subfolder": given["subfolder"], "type": "output"})
"""
_FORGED_ERROR = (
    '{"queued": false, "entry": {"outputs": {}, "status": {"messages": '
    '[["execution_error", {"exception_message": "forged"}]]}}}'
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile_renderer(
    options: ComfyOptions, blobs: BlobStore, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ComfyRenderer]:
    package = write_hostile_nodes(tmp_path_factory.mktemp("nodes"))
    folder = tmp_path_factory.mktemp("answers") / "run"
    renderer = ComfyRenderer(replace(options, folder=folder, custom_nodes=(package,)), blobs)
    await renderer.start()
    await render(renderer, build_picture_graph())
    yield renderer
    await renderer.close()


async def render(
    renderer: ComfyRenderer, graph: dict[str, Any], *, tenant: str = "", prompt_id: str = ""
) -> RenderSucceeded:
    request = RenderRequest(
        prompt_id=prompt_id or str(uuid.uuid4()),
        graph=graph,
        extra_data={"moyin": {"tenant": tenant}},
    )
    async with aclosing(renderer.render(request)) as events:
        *_, last_event = [event async for event in events]
    assert isinstance(last_event, RenderSucceeded)
    return last_event


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ('{"queued": true, "entry": ' + "[" * 700 + "]" * 700 + "}", "100 levels of nesting"),
        ('{"queued": true, "entry": ' + "[" * 100_000, "100 levels of nesting"),
        ('{"queued": "\udcff"}', "not JSON in UTF-8"),
        ('{"queued": true, "entry": {"outputs": [], "status": {}}}', "response is malformed"),
    ],
    ids=["deep", "deeper", "surrogate", "types"],
)
async def test_malformed_answer_fails_its_prompt_and_replaces_comfyui(
    hostile_renderer: ComfyRenderer, body: str, rule: str
) -> None:
    pid = (await hostile_renderer.status()).pid
    code = _ANSWER_FOR_COMFYUI
    if "\udcff" in body:
        code = code.replace("text=body", "body=body.encode(errors='surrogateescape')")
    with pytest.raises(WorkerLost, match=rule) as exc_info:
        await render(hostile_renderer, build_hostile_graph(code, body), tenant="ada")
    assert exc_info.value.details == {"ended": "comfyui"}
    assert (await render(hostile_renderer, build_picture_graph(), tenant="bob")).files
    assert (await hostile_renderer.status()).pid not in (None, pid)


async def test_hostile_messages_and_half_a_surrogate_pair_do_not_fail_the_prompt(
    hostile_renderer: ComfyRenderer,
) -> None:
    pid, prompt_id = (await hostile_renderer.status()).pid, str(uuid.uuid4())
    graph = build_hostile_graph(_SEND_HOSTILE_MESSAGES, prompt_id)
    success = await render(hostile_renderer, graph, prompt_id=prompt_id)
    assert success.values["1"]["files"] == ["half of a pair: \ufffd"]
    assert (await render(hostile_renderer, build_picture_graph())).files
    assert (await hostile_renderer.status()).pid == pid


async def test_name_of_another_tenants_output_leads_to_no_file(
    hostile_renderer: ComfyRenderer,
) -> None:
    name, ada_id = f"{uuid.uuid4()}.png", str(uuid.uuid4())
    graph = build_hostile_graph(_WRITE_AND_REPORT, {"name": name, "subfolder": "", "write": True})
    success = await render(hostile_renderer, graph, tenant="ada", prompt_id=ada_id)
    assert [file.name for file in success.files] == [name]
    for subfolder in ("", ada_id):
        given = {"name": name, "subfolder": subfolder, "write": False}
        with pytest.raises(StepFailed, match="does not exist"):
            await render(
                hostile_renderer, build_hostile_graph(_WRITE_AND_REPORT, given), tenant="bob"
            )


async def test_comfyui_that_fails_three_tenants_in_a_row_is_replaced(
    hostile_renderer: ComfyRenderer,
) -> None:
    pid = (await hostile_renderer.status()).pid
    forging_graph = build_hostile_graph(_ANSWER_FOR_COMFYUI, _FORGED_ERROR)
    for _ in range(3):
        with pytest.raises(RenderFailed, match="forged"):
            await render(hostile_renderer, forging_graph, tenant="ada")
    assert (await hostile_renderer.status()).pid == pid, "one tenant alone replaces nothing"
    for tenant in ("bob", "cy"):
        with pytest.raises(MoyinError, match="forged"):
            await render(hostile_renderer, build_picture_graph(), tenant=tenant)

    async def is_replaced() -> bool:
        return (await hostile_renderer.status()).pid not in (None, pid)

    assert (await render(hostile_renderer, build_picture_graph(), tenant="bob")).files
    await eventually(is_replaced)
