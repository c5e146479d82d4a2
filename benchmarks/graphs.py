"""Measures what a tenant's largest graphs cost another tenant's requests.

``python -m benchmarks.graphs`` starts a stack. One tenant sends small requests, first alone, then
while ten connections of another tenant submit, convert and list the largest permitted graphs in a
loop. A first prompt sleeps, so that the graphs are queued but not rendered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from benchmarks.farm import Farm, authorize, create_key, running_farm

_NO_SERVER = "http://127.0.0.1:9"
_CONNECTIONS = 10
_PAUSE_SECONDS = 0.02
_CHAIN = 300
_SLEEP_SECONDS = 600.0
_PATHS = ("/jobs", "/queue", "/history")


def make_large_graph(nodes: int, seed: int) -> dict[str, Any]:
    """Return a graph of about ``nodes`` nodes with 2 links each, in chains of 300 nodes."""
    graph: dict[str, Any] = {}
    for number in range(nodes):
        is_start = number % _CHAIN == 0
        inputs: dict[str, Any] = (
            {"width": 64, "height": 64, "batch_size": 1, "color": seed + number}
            if is_start
            else {
                "image1": [str(number - 1), 0],
                "image2": [str(number - number % _CHAIN), 0],
                "blend_factor": 0.5,
                "blend_mode": "normal",
            }
        )
        class_type = "EmptyImage" if is_start else "ImageBlend"
        graph[str(number)] = {
            "class_type": class_type,
            "inputs": inputs,
            "_meta": {"title": f"{class_type} {number} of a large graph"},
        }
    graph["save"] = {"class_type": "PreviewImage", "inputs": {"images": [str(nodes - 1), 0]}}
    return graph


def _make_small_graph(seed: int) -> dict[str, Any]:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": seed},
        },
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


async def _measure_requests(client: aiohttp.ClientSession, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each request by its route."""
    durations: dict[str, list[float]] = {}
    for number in range(rounds):
        for path in (*_PATHS, "/prompt"):
            body = {"prompt": _make_small_graph(number)} if path == "/prompt" else None
            method = "GET" if body is None else "POST"
            started_at = time.perf_counter()
            async with client.request(method, path, json=body) as response:
                await response.read()
                assert response.status < 400, await response.text()
            durations.setdefault(f"{method} {path}", []).append(time.perf_counter() - started_at)
            await asyncio.sleep(_PAUSE_SECONDS)
    return durations


async def _submit_forever(
    client: aiohttp.ClientSession, number: int, nodes: int, statuses: dict[str, int]
) -> None:
    path = {0: "/queue", 1: "/graphs/convert"}.get(number, "/prompt")
    graph = make_large_graph(nodes - 1, number)
    body = json.dumps({"graph": graph} if number == 1 else {"prompt": graph}).encode()
    while True:
        method = "GET" if number == 0 else "POST"
        data = None if number == 0 else body
        async with client.request(method, path, data=data) as response:
            await response.read()
            key = f"{method} {path}: {response.status}"
            statuses[key] = statuses.get(key, 0) + 1


async def measure(farm: Farm, nodes: int, rounds: int) -> Mapping[str, Any]:
    """Return the milliseconds of the small requests, alone and beside large ones."""
    greedy, modest = create_key(farm, "greedy"), create_key(farm, "modest")
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(farm.url, headers=authorize(greedy), timeout=timeout) as attacker,
        aiohttp.ClientSession(farm.url, headers=authorize(modest), timeout=timeout) as client,
    ):
        sleeping = _make_small_graph(0xFFFFFF)
        sleeping["2"]["class_type"] = "TestSleep"
        sleeping["2"]["inputs"] = {"value": ["1", 0], "seconds": _SLEEP_SECONDS}
        sleeping["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
        async with client.post("/prompt", json={"prompt": sleeping}) as response:
            assert response.status == 200, await response.text()
        await _measure_requests(client, 10)
        quiet = await _measure_requests(client, rounds)
        statuses: dict[str, int] = {}
        tasks = [
            asyncio.create_task(_submit_forever(attacker, number, nodes, statuses))
            for number in range(_CONNECTIONS)
        ]
        await asyncio.sleep(3)
        started_at = time.perf_counter()
        busy = await _measure_requests(client, rounds)
        seconds = time.perf_counter() - started_at
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "nodes": nodes,
        "greedy": statuses,
        "seconds": round(seconds, 1),
        "milliseconds": {
            route: {
                "quiet": _summarize(quiet[route]),
                "busy": _summarize(busy[route]),
                "ratio": round(statistics.median(busy[route]) / statistics.median(quiet[route]), 2),
            }
            for route in quiet
        },
    }


def _summarize(durations: list[float]) -> dict[str, float]:
    ordered = sorted(durations)
    return {
        "median": round(1e3 * statistics.median(ordered), 1),
        "p95": round(1e3 * ordered[int(len(ordered) * 0.95)], 1),
        "worst": round(1e3 * ordered[-1], 1),
    }


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs")
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    with running_farm(_NO_SERVER) as farm:
        print(json.dumps(asyncio.run(measure(farm, arguments.nodes, arguments.rounds)), indent=2))


if __name__ == "__main__":
    main()
