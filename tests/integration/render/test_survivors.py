"""Tests in a real ComfyUI that nothing of a prompt outlives it, and that no prompt uses too much."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest
import pytest_asyncio

from moyin.domain.renderer import RenderRequest
from moyin.errors import ResourceLimitExceeded, WorkerLost
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore
from tests.integration.render.fixtures import blobs, build_picture_graph, options
from tests.integration.render.hostile import (
    build_hostile_graph,
    render_graph,
    run_hostile_code,
    store_input,
    write_hostile_nodes,
)
from tests.survivors import FORMS, LOOK_AROUND, build_survivor
from tests.waiting import eventually

__all__ = ["blobs", "options"]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
# How often each form is tried.
PROMPTS = int(os.environ.get("SURVIVOR_PROMPTS", "2"))
INPUT = b"the next tenant's input"
_MIB = 1024**2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renderer(
    options: ComfyOptions, blobs: BlobStore, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ComfyRenderer]:
    renderer = ComfyRenderer(
        replace(
            options,
            custom_nodes=(write_hostile_nodes(tmp_path_factory.mktemp("nodes")),),
            processes=60,
            memory_bytes=2048 * _MIB,
            disk_bytes=64 * _MIB,
            files=1000,
        ),
        blobs,
    )
    await renderer.start()
    await render_graph(renderer, build_picture_graph())
    yield renderer
    await renderer.close()


@pytest.mark.parametrize("form", FORMS)
async def test_no_process_of_a_prompt_sees_the_next_one(renderer: ComfyRenderer, form: str) -> None:
    pid_before = (await renderer.status()).pid
    files = await store_input(renderer, INPUT)
    for _ in range(PROMPTS):
        assert await run_hostile_code(renderer, build_survivor(form)) is True
        assert await run_hostile_code(renderer, LOOK_AROUND, files=files) == []
    assert (await renderer.status()).pid == pid_before, "and no process was replaced"


async def test_a_cancelled_prompts_processes_do_not_see_the_next_one(
    renderer: ComfyRenderer,
) -> None:
    code = f"""{build_survivor("a chain of processes")}
open(folder_paths.get_temp_directory() + "/begun", "w").close()
while True:
    time.sleep(0.01)
"""
    request = RenderRequest(prompt_id=str(uuid.uuid4()), graph=build_hostile_graph(code))
    render_task = asyncio.create_task(_render(renderer, request))
    await eventually((renderer._folder.base / "temp" / "begun").exists)
    # ComfyUI interrupts a prompt only between nodes, so this one is interrupted by hand.
    cancel_task = asyncio.create_task(renderer.cancel(request.prompt_id))
    pid = (await renderer.status()).pid
    assert pid is not None
    await asyncio.sleep(0.1)
    psutil.Process(pid).kill()
    await cancel_task
    with pytest.raises(WorkerLost):
        await render_task
    files = await store_input(renderer, INPUT)
    assert await run_hostile_code(renderer, LOOK_AROUND, files=files) == []


async def test_comfyui_is_replaced_before_the_next_prompt_if_a_process_may_be_left(
    renderer: ComfyRenderer,
) -> None:
    await run_hostile_code(renderer, "kept['mark'] = True")
    session = renderer._supervisor.session
    assert session is not None
    sandbox_processes = session._process._sandbox_processes
    assert sandbox_processes is not None
    init = psutil.Process(sandbox_processes.init_pid)
    init_children = init.children(recursive=True)
    sandbox_processes._control.settimeout(0.5)
    init.send_signal(signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="does not answer"):
        await render_graph(renderer, build_picture_graph())
    assert not await run_hostile_code(renderer, "found = kept.get('mark', False)")
    assert not [process for process in init_children if process.is_running()]


@pytest.mark.parametrize(
    ("bound", "code"),
    [
        ("memory_gib", "block = bytearray(1 << 31); time.sleep(60)"),
        (
            "memory_gib",
            "memory = os.memfd_create('memory', 0)\n"
            "for _ in range(32): os.write(memory, bytes(1 << 26)); os.lseek(memory, 0, os.SEEK_END)\n"
            "time.sleep(60)",
        ),
        (
            "memory_gib",
            "script = 'import time; block = bytearray(1 << 31); time.sleep(60)'\n"
            "subprocess.run([sys.executable, '-c', script])\n"
            "time.sleep(60)",
        ),
        (
            "disk_gib",
            "target = open(folder_paths.get_output_directory() + '/big', 'wb')\n"
            "target.write(bytes(80 << 20)); target.flush(); time.sleep(60)",
        ),
        (
            "disk_gib",
            "target = open(folder_paths.get_temp_directory() + '/removed', 'wb')\n"
            "os.unlink(target.name); target.write(bytes(80 << 20)); target.flush(); time.sleep(60)",
        ),
        (
            "files",
            "top = folder_paths.get_output_directory() + '/many'\n"
            "os.mkdir(top)\n"
            "for n in range(2000): open(top + '/%d' % n, 'w').close()\n"
            "os.chmod(top, 0); time.sleep(60)",
        ),
        (
            "processes",
            "for _ in range(200):\n    if os.fork() == 0: time.sleep(60)",
        ),
    ],
)
async def test_prompt_that_uses_too_much_fails_alone(
    renderer: ComfyRenderer, bound: str, code: str
) -> None:
    code = f"import os, subprocess, sys, time\n{code}"
    with pytest.raises(ResourceLimitExceeded) as exc_info:
        await render_graph(renderer, build_hostile_graph(code))
    assert exc_info.value.details["bound"] == bound
    assert exc_info.value.code == "resource_limit"
    assert (await render_graph(renderer, build_picture_graph())).files
    assert await run_hostile_code(renderer, LOOK_AROUND) == []
    assert not list(renderer._folder.path.rglob("big"))


async def _render(renderer: ComfyRenderer, request: RenderRequest) -> None:
    async for _ in renderer.render(request):
        pass
