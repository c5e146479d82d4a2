"""Measures the processor time per small render, by process: ``python -m benchmarks.cost``.

One actor renders small pictures one after the other. The processor time that each process uses
while idle for the same duration is subtracted. The total excludes ComfyUI itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.farm import Farm, running_farm
from moyin.system.processes import find_processes

_IDLE_SECONDS = 20.0
_colors = itertools.count(1)
_PARTS = {
    "JobWorker": r"^ray::ServeReplica:workers:JobWorker",
    "Temporal": r"temporal.* server start-dev",
    "gateway": r"^ray::ServeReplica:gateway:Gateway",
    "models": r"^ray::ServeReplica:models:Models",
    "accounts": r"^ray::ServeReplica:accounts:",
    "Serve": r"^ray::(?:SERVE_|ServeController|ProxyActor)",
    "RenderPool": r"^ray::ServeReplica:render-default:RenderPool",
    "ComfyUIActor": r"^ray::ComfyUIActor",
    "Valkey": r"valkey-server",
    "HAProxy": r"haproxy",
    "raylet, GCS": r"raylet|gcs_server",
    "ComfyUI": r"--database-url",
}


async def measure_cost(farm: Farm, jobs: int) -> dict[str, float]:
    """Return the processor time per job in milliseconds, by part of the stack.

    ``all`` is the total without ComfyUI, and ``seconds`` the duration of a job.
    """
    async with aiohttp.ClientSession(
        farm.url, headers={"authorization": f"Bearer {farm.key}"}
    ) as session:
        for _ in range(5):
            await _run_job(session)
        await asyncio.sleep(3)
        idle_seconds = await measure_processes(farm.data, asyncio.sleep(_IDLE_SECONDS))
        started_at = time.monotonic()
        busy_seconds = await measure_processes(farm.data, _run_jobs(session, jobs))
        seconds = time.monotonic() - started_at
    cost_by_part = {
        part: (busy_seconds[part] - idle_seconds[part] * seconds / _IDLE_SECONDS) * 1000 / jobs
        for part in busy_seconds
    }
    cost_by_part["all"] = sum(ms for part, ms in cost_by_part.items() if part != "ComfyUI")
    return cost_by_part | {"seconds": seconds / jobs}


async def _run_jobs(session: aiohttp.ClientSession, count: int) -> None:
    for _ in range(count):
        await _run_job(session)


async def _run_job(session: aiohttp.ClientSession) -> None:
    """Submit a job and read its events to the end, as clients do."""
    async with session.post("/jobs", json={"kind": "render", "workflow": _new_graph()}) as response:
        response.raise_for_status()
        job_id = (await response.json())["id"]
    async with session.get(f"/jobs/{job_id}/events") as response:
        assert "event: succeeded" in await response.text()


def _new_graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "b"}},
    }


async def measure_processes(data: Path, activity: Any) -> Mapping[str, float]:
    """Await ``activity``, and return the processor seconds that each part of the stack used.

    Args:
        data: the stack's data folder, by which its processes are found.
        activity: the awaitable during which the processes are measured.
    """
    seconds_before = dict(_read_processor_times(data))
    await activity
    spent_seconds: dict[str, float] = defaultdict(float)
    for (part, process), seconds in _read_processor_times(data):
        spent_seconds[part] += seconds - seconds_before.get((part, process), 0.0)
    return spent_seconds


def _read_processor_times(data: Path) -> Iterator[tuple[tuple[str, int], float]]:
    for process in find_processes(str(data)):
        try:
            command_line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        part = next(
            (name for name, regex in _PARTS.items() if re.search(regex, command_line)), "others"
        )
        yield (part, process.pid), times.user + times.system


def main() -> None:
    """Measure the processor time per render several times; print one JSON line for each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=60, help="renders in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with running_farm("http://127.0.0.1:9") as farm:
        for _ in range(options.rounds):
            cost_by_part = asyncio.run(measure_cost(farm, options.jobs))
            print(json.dumps({name: round(figure, 2) for name, figure in cost_by_part.items()}))


if __name__ == "__main__":
    main()
