"""Many ComfyUIs at once: ``python -m benchmarks.crowd``.

80 graphs that sleep a second, on eight ComfyUIs: straight to them, which is as fast as this machine
can be, and through ``/jobs``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from benchmarks.farm import Farm, running
from moyin.stack.processes import find

__all__ = ["Crowd", "crowd"]

_AT_ONCE = 8
_LOOK_SECONDS = 0.05
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
        comfyuis = await _up(session, farm, actors)
        # A first round, after which everybody is connected and warm.
        await _through_farm(session, farm.url, actors)
        direct = await _straight(session, comfyuis, jobs)
        seconds, submitting = await _through_farm(session, farm.url, jobs)
    return Crowd(direct_seconds=direct, farm_seconds=seconds, submit_seconds=submitting)


def _graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 1.0}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }


async def _straight(session: aiohttp.ClientSession, urls: Sequence[str], count: int) -> float:
    began = time.perf_counter()
    turn = itertools.cycle(urls)

    async def submit() -> None:
        async with session.post(f"{next(turn)}/prompt", json={"prompt": _graph()}) as answer:
            answer.raise_for_status()

    await _side_by_side([submit] * count)
    await asyncio.gather(*(_idle(session, url) for url in urls))
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


async def _idle(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        async with session.get(f"{url}/prompt") as answer:
            if (await answer.json())["exec_info"]["queue_remaining"] == 0:
                return
        await asyncio.sleep(_LOOK_SECONDS)


async def _up(session: aiohttp.ClientSession, farm: Farm, actors: int) -> list[str]:
    """Addresses of the farm's ComfyUIs, when all of them answer."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        urls = [url for url in _addresses(farm) if await _answers(session, url)]
        if len(urls) == actors:
            return urls
        await asyncio.sleep(1)
    raise SystemExit("not all ComfyUIs came up")


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/prompt") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _addresses(farm: Farm) -> list[str]:
    lines = [process.cmdline() for process in find(str(farm.data))]
    return [
        f"http://127.0.0.1:{line[line.index('--port') + 1]}"
        for line in lines
        if "--database-url" in line
    ]


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
