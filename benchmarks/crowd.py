"""Many ComfyUIs at once: ``python -m benchmarks.crowd``.

80 graphs that sleep a second, on eight ComfyUIs: straight to them, which is as fast as this machine
can be, and through ``/jobs``.
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

from benchmarks.farm import Farm, running
from benchmarks.render import comfyui_folders, straight_to

__all__ = ["Crowd", "crowd"]

_AT_ONCE = 8
_LOOK_SECONDS = 0.05
_ANSWER_SECONDS = 5.0
_START_SECONDS = 600.0
# Every graph is another one: ComfyUI would answer a repeated graph from its cache.
_colors = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Seconds from the first submission to the last end; ``submit_seconds`` to the last id."""

    direct_seconds: float
    farm_seconds: float
    submit_seconds: float


async def crowd(farm: Farm, actors: int, jobs: int) -> Crowd:
    """Measure once all actors are up."""
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {farm.key}"}) as session:
        folders = await _up(farm, actors)
        # A first round, after which everybody is connected and warm.
        await _through_farm(session, farm.url, actors)
        async with AsyncExitStack() as straight:
            comfyuis = [await straight.enter_async_context(straight_to(one)) for one in folders]
            direct = await _straight(comfyuis, jobs)
        seconds, submitting = await _through_farm(session, farm.url, jobs)
    return Crowd(direct_seconds=direct, farm_seconds=seconds, submit_seconds=submitting)


def _graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 1.0}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }


async def _straight(comfyuis: Sequence[aiohttp.ClientSession], count: int) -> float:
    began = time.perf_counter()
    turn = itertools.cycle(comfyuis)

    async def submit() -> None:
        async with next(turn).post("/prompt", json={"prompt": _graph()}) as answer:
            answer.raise_for_status()

    await _side_by_side([submit] * count)
    await asyncio.gather(*map(_idle, comfyuis))
    return time.perf_counter() - began


async def _through_farm(
    session: aiohttp.ClientSession, url: str, count: int
) -> tuple[float, float]:
    began = time.perf_counter()
    jobs: list[str] = []

    async def submit() -> None:
        body = {"kind": "render", "workflow": _graph()}
        async with session.post(f"{url}/jobs", json=body) as answer:
            answer.raise_for_status()
            jobs.append((await answer.json())["id"])

    await _side_by_side([submit] * count)
    submitted = time.perf_counter() - began
    for job_id in jobs:
        await _end(session, url, job_id)
    return time.perf_counter() - began, submitted


async def _side_by_side(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Callable[[], Awaitable[None]]) -> None:
        async with limit:
            await call()

    await asyncio.gather(*map(one, calls))


async def _end(session: aiohttp.ClientSession, url: str, job_id: str) -> None:
    while True:
        async with session.get(f"{url}/jobs/{job_id}") as answer:
            status = (await answer.json())["status"]
        if status not in ("queued", "running"):
            assert status == "succeeded", (job_id, status)
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def _idle(session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get("/prompt") as answer:
            if (await answer.json())["exec_info"]["queue_remaining"] == 0:
                return
        await asyncio.sleep(_LOOK_SECONDS)


async def _up(farm: Farm, actors: int) -> list[Path]:
    """Folders of the farm's ComfyUIs, when all of them answer."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(SystemExit):
            folders = comfyui_folders(farm)
            if sum([await _answers(folder) for folder in folders]) == actors:
                return folders
        await asyncio.sleep(1)
    raise SystemExit("not all ComfyUIs came up")


async def _answers(folder: Path) -> bool:
    try:
        async with (
            asyncio.timeout(_ANSWER_SECONDS),
            straight_to(folder) as session,
            session.get("/prompt") as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with running("http://127.0.0.1:9", actors=options.actors) as farm:
        for _ in range(options.rounds):
            found = asyncio.run(crowd(farm, options.actors, options.jobs))
            print(json.dumps({name: round(value, 2) for name, value in asdict(found).items()}))


if __name__ == "__main__":
    main()
