"""Times renders through ``/jobs``, and the same graphs sent directly to the same ComfyUI."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.farm import Farm
from moyin.system.processes import find_processes

_GRAPHS = 100
_SECONDS = 0.5
_FINAL = {"succeeded", "failed", "cancelled"}
# Every graph is different, because ComfyUI would answer a repeated graph from its cache.
_colors = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The seconds that all graphs took, sent directly to ComfyUI and as jobs through the gateway.

    Attributes:
        graphs: the number of graphs.
        submit_ms: the median time of a submission.
    """

    graphs: int
    direct_seconds: float
    farm_seconds: float
    submit_ms: float


def measure_renders(farm: Farm) -> Rendering:
    """Time renders with one actor that is warm, directly and through the gateway."""
    return asyncio.run(_measure_renders(farm))


async def _measure_renders(farm: Farm) -> Rendering:
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {farm.key}"}) as session:
        await _time_farm_renders(session, farm.url, 1)  # starts the actor and opens connections
        async with open_comfyui_session(list_comfyui_folders(farm)[0]) as comfyui:
            direct_seconds = await _time_direct_renders(comfyui)
        seconds, submit_seconds = await _time_farm_renders(session, farm.url, _GRAPHS)
    return Rendering(
        graphs=_GRAPHS,
        direct_seconds=direct_seconds,
        farm_seconds=seconds,
        submit_ms=statistics.median(submit_seconds) * 1000,
    )


def _new_graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": _SECONDS}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }


async def _time_direct_renders(session: aiohttp.ClientSession) -> float:
    started_at = time.perf_counter()
    for _ in range(_GRAPHS):
        async with session.post("/prompt", json={"prompt": _new_graph()}) as response:
            response.raise_for_status()
    while True:
        async with session.get("/prompt") as response:
            if (await response.json())["exec_info"]["queue_remaining"] == 0:
                return time.perf_counter() - started_at
        await asyncio.sleep(0.02)


async def _time_farm_renders(
    session: aiohttp.ClientSession, url: str, count: int
) -> tuple[float, list[float]]:
    started_at = time.perf_counter()
    jobs, submit_seconds = [], []
    for _ in range(count):
        sent_at = time.perf_counter()
        body = {"kind": "render", "workflow": _new_graph()}
        async with session.post(f"{url}/jobs", json=body) as response:
            response.raise_for_status()
            jobs.append((await response.json())["id"])
        submit_seconds.append(time.perf_counter() - sent_at)
    for job_id in jobs:
        await _wait_for_job(session, url, job_id)
    return time.perf_counter() - started_at, submit_seconds


async def _wait_for_job(session: aiohttp.ClientSession, url: str, job_id: str) -> None:
    while True:
        async with session.get(f"{url}/jobs/{job_id}") as response:
            job = await response.json()
        if job["status"] in _FINAL:
            assert job["status"] == "succeeded", job
            return
        await asyncio.sleep(0.05)


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield a path in /proc to a Unix socket, because Linux allows only 107 characters."""
    folder_descriptor = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder_descriptor}/{path.name}"
    finally:
        os.close(folder_descriptor)


@asynccontextmanager
async def open_comfyui_session(folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session of an HTTP client with the ComfyUI that uses ``folder``."""
    with _short_path(folder / "comfyui.sock") as address:
        connector = aiohttp.UnixConnector(address)
        async with aiohttp.ClientSession("http://comfyui", connector=connector) as session:
            yield session


def list_comfyui_folders(farm: Farm) -> list[Path]:
    """Return the folders of all running ComfyUIs of the stack, taken from their command lines.

    Raises:
        SystemExit: no ComfyUI runs.
    """
    folders = set()
    for process in find_processes(str(farm.data)):
        command_line = process.cmdline()
        if "--base-directory" in command_line:
            folders.add(Path(command_line[command_line.index("--base-directory") + 1]).parent)
    if not folders:
        raise SystemExit("no ComfyUI of the stack is running: start it with at least one actor")
    return sorted(folders)
