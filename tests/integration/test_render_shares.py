"""Actors on shares of one logical GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.comfyui import ActorStatus, ComfySpec, find_or_start
from moyin.comfyui.install import ComfyUI
from tests.integration.render_cluster import ray_cluster
from tests.integration.render_fixtures import comfyui_processes, until


@pytest.mark.timeout(200)
async def test_two_share_a_gpu_and_a_third_waits(
    comfyui: ComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path))
    monkeypatch.setenv("MOYIN_COMFYUI_HOME", str(comfyui.home))
    monkeypatch.setenv("MOYIN_COMFYUI_PYTHON", str(comfyui.python))
    with ray_cluster([{"num_cpus": 4, "num_gpus": 1}]):
        spec = ComfySpec(gpus=0.5, cpus=0.1)
        first, second = (find_or_start(f"share-{n}", spec) for n in range(2))
        statuses = [await until(lambda a=a: _ready(a), 90) for a in (first, second)]
        assert [status.devices for status in statuses] == ["0", "0"]
        assert {s.renderer.pid for s in statuses} == set(comfyui_processes(tmp_path))

        third = find_or_start("share-2", spec)
        placed = third.status.remote()
        await asyncio.sleep(4)
        done, _ = await asyncio.to_thread(ray.wait, [placed], timeout=0)
        assert done == [], "there is no room"
        assert len(comfyui_processes(tmp_path)) == 2

        await first.close.remote()
        ray.kill(first)
        assert (await until(lambda: _ready(third), 90)).devices == "0"
        assert len(comfyui_processes(tmp_path)) == 2
    await until(lambda: comfyui_processes(tmp_path) == [])


async def _ready(actor: Any) -> ActorStatus | None:
    status: ActorStatus = await actor.status.remote()
    return status if status.renderer.ready else None
