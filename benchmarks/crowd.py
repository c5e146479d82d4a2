"""Measures many ComfyUIs at once: ``python -m benchmarks.crowd``.

Runs 80 graphs that sleep for a second on eight ComfyUIs: first by direct calls, which shows the
machine's maximum, then through ``/jobs``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.farm import Farm, running_farm
from benchmarks.render import list_comfyui_folders, open_comfyui_session

_CONCURRENCY = 8
_POLL_SECONDS = 0.05
_RESPONSE_SECONDS = 5.0
_START_SECONDS = 600.0
# Every graph is different, because ComfyUI would answer a repeated graph from its cache.
_colors = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class CrowdTimes:
    """The times of one round, in seconds from the first submission.

    Attributes:
        direct_seconds: until the last result of graphs that were sent straight to ComfyUI.
        farm_seconds: until the last result of jobs that were sent to the gateway.
        submit_seconds: until the gateway had returned the last job id.
    """

    direct_seconds: float
    farm_seconds: float
    submit_seconds: float


async def measure_crowd(farm: Farm, actors: int, jobs: int) -> CrowdTimes:
    """Time ``jobs`` graphs sent to ComfyUI directly, then as many jobs sent through the gateway.

    First wait until all actors run.
    """
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {farm.key}"}) as session:
        folders = await _wait_for_comfyuis(farm, actors)
        # The first round only opens connections and fills caches.
        await _time_farm_renders(session, farm.url, actors)
        async with AsyncExitStack() as sessions:
            comfyuis = [
                await sessions.enter_async_context(open_comfyui_session(path)) for path in folders
            ]
            direct_seconds = await _time_direct_renders(comfyuis, jobs)
        seconds, submit_seconds = await _time_farm_renders(session, farm.url, jobs)
    return CrowdTimes(
        direct_seconds=direct_seconds, farm_seconds=seconds, submit_seconds=submit_seconds
    )


def _new_graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 1.0}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }


async def _time_direct_renders(comfyuis: Sequence[aiohttp.ClientSession], count: int) -> float:
    started_at = time.perf_counter()
    targets = itertools.cycle(comfyuis)

    async def submit() -> None:
        async with next(targets).post("/prompt", json={"prompt": _new_graph()}) as response:
            response.raise_for_status()

    await _run_concurrently([submit] * count)
    await asyncio.gather(*map(_wait_until_idle, comfyuis))
    return time.perf_counter() - started_at


async def _time_farm_renders(
    session: aiohttp.ClientSession, url: str, count: int
) -> tuple[float, float]:
    started_at = time.perf_counter()
    jobs: list[str] = []

    async def submit() -> None:
        body = {"kind": "render", "workflow": _new_graph()}
        async with session.post(f"{url}/jobs", json=body) as response:
            response.raise_for_status()
            jobs.append((await response.json())["id"])

    await _run_concurrently([submit] * count)
    submit_seconds = time.perf_counter() - started_at
    for job_id in jobs:
        await _wait_for_job(session, url, job_id)
    return time.perf_counter() - started_at, submit_seconds


async def _run_concurrently(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    semaphore = asyncio.Semaphore(_CONCURRENCY)

    async def run_limited(call: Callable[[], Awaitable[None]]) -> None:
        async with semaphore:
            await call()

    await asyncio.gather(*map(run_limited, calls))


async def _wait_for_job(session: aiohttp.ClientSession, url: str, job_id: str) -> None:
    while True:
        async with session.get(f"{url}/jobs/{job_id}") as response:
            status = (await response.json())["status"]
        if status not in ("queued", "running"):
            assert status == "succeeded", (job_id, status)
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _wait_until_idle(session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get("/prompt") as response:
            if (await response.json())["exec_info"]["queue_remaining"] == 0:
                return
        await asyncio.sleep(_POLL_SECONDS)


async def _wait_for_comfyuis(farm: Farm, actors: int) -> list[Path]:
    """Wait until ``actors`` ComfyUIs of the stack respond, and return their folders."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(SystemExit):
            folders = list_comfyui_folders(farm)
            if sum([await _is_responding(folder) for folder in folders]) == actors:
                return folders
        await asyncio.sleep(1)
    raise SystemExit(
        f"fewer than {actors} ComfyUIs started within {_START_SECONDS:.0f} seconds: "
        "choose fewer --actors"
    )


async def _is_responding(folder: Path) -> bool:
    try:
        async with (
            asyncio.timeout(_RESPONSE_SECONDS),
            open_comfyui_session(folder) as session,
            session.get("/prompt") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def main() -> None:
    """Time renders directly and through the gateway; print one JSON line for each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=8, help="ComfyUIs of the stack")
    parser.add_argument("--jobs", type=int, default=80, help="graphs in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with running_farm("http://127.0.0.1:9", actors=options.actors) as farm:
        for _ in range(options.rounds):
            crowd_times = asyncio.run(measure_crowd(farm, options.actors, options.jobs))
            print(
                json.dumps(
                    {name: round(seconds, 2) for name, seconds in asdict(crowd_times).items()}
                )
            )


if __name__ == "__main__":
    main()
