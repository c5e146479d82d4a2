"""Tests what becomes of a real ComfyUI and its render when its node's memory is short."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moyin.errors import WorkerLost
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore
from moyin.system.memory import MemoryReading
from moyin.system.memory_guard import MemoryGuard
from moyin.system.memory_kills import MemoryKillLog
from moyin.system.ranks import Rank
from tests.integration.render.fixtures import (
    blobs,
    build_picture_graph,
    build_sleepy_graph,
    options,
    render_successfully,
)
from tests.waiting import eventually

__all__ = ["blobs", "options"]
_MIB = 1024**2


async def test_comfyui_ends_while_memory_is_short_and_no_render_is_blamed(
    options: ComfyOptions, blobs: BlobStore, tmp_path: Path
) -> None:
    available = 8192 * _MIB
    kills = MemoryKillLog(tmp_path, "comfyui")
    guard = MemoryGuard(
        "comfyui",
        rank=Rank.COMFYUI,
        find_victim=lambda: renderer.pid,
        end_victim=lambda pid: renderer.kill(pid),
        reserve_bytes=512 * _MIB,
        needed_bytes=1024 * _MIB,
        kill_log=kills,
        read_memory=lambda: MemoryReading(available=available, total=8192 * _MIB),
        lock_path=tmp_path / "lock",
    )
    renderer = ComfyRenderer(options, blobs, wait_for_memory=guard.wait_for_memory)

    def is_rendering() -> bool:
        prompts = [prompt for prompt, _ in renderer._active_prompts.values()]
        return any(prompt.is_submitted for prompt in prompts)

    async def is_waiting() -> bool:
        return "waiting for memory" in ((await renderer.status()).error or "")

    await renderer.start()
    guard.start()
    try:
        await render_successfully(renderer, build_picture_graph())
        pid = renderer.pid
        score = Path(f"/proc/{pid}/oom_score_adj")
        await eventually(lambda: int(score.read_text()) == Rank.COMFYUI)
        victim = asyncio.create_task(render_successfully(renderer, build_sleepy_graph(60)))
        await eventually(is_rendering)
        available = 100 * _MIB
        with pytest.raises(WorkerLost) as exc_info:
            await victim
        assert exc_info.value.details.get("ended") != "comfyui", "the render is not the cause"
        await eventually(lambda: len(kills.list_recent()) == 1)
        await eventually(is_waiting)
        available = 8192 * _MIB
        await render_successfully(renderer, build_picture_graph())
        assert renderer.pid != pid
    finally:
        guard.stop()
        await renderer.close()
