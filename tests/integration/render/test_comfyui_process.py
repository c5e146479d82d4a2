"""Tests that no ComfyUI outlives the process that started it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from moyin.render.comfyui.install import ComfyUI
from tests.integration.render.fixtures import list_comfyui_pids
from tests.waiting import eventually

_PARENT = """
import asyncio, sys
from pathlib import Path
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore

async def main(home, python, folder):
    options = ComfyOptions(
        home=Path(home), python=Path(python), folder=folder / "run", models=folder / "models",
        cpu=True,
    )
    renderer = ComfyRenderer(options, BlobStore(f"file://{folder}/blobs"))
    await renderer.start()
    await asyncio.sleep(600)

asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
"""


async def test_comfyui_dies_with_its_parent(comfyui: ComfyUI, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(comfyui.home), str(comfyui.python), str(tmp_path)
    )
    [pid] = await eventually(lambda: list_comfyui_pids(tmp_path), 180)
    # Into the midst of its start: the kernel must know by now.
    await eventually(lambda: psutil.Process(pid).memory_info().rss > 60 * 1024**2)
    parent.kill()
    await parent.wait()
    await eventually(lambda: list_comfyui_pids(tmp_path) == [], 3)
