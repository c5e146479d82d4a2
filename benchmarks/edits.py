"""Measures how much of a graph is executed again when artists edit its last nodes.

``python -m benchmarks.edits`` starts a stack with several ComfyUIs. Each artist, a tenant of its
own, renders a graph, looks at the picture for about a second, changes the last node but one and
renders again. One artist changes the first node instead, so that nothing in a cache fits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.farm import Farm, authorize, create_key, running_farm

_NO_SERVER = "http://127.0.0.1:9"
_SAMPLER_SECONDS = 2.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A finished render.

    Attributes:
        nodes: the number of nodes of the graph.
        executed: how many of them were executed.
        seconds: the time from its submission to its result.
        wait_seconds: the time from its submission until the graph was executed.
    """

    nodes: int
    executed: int
    seconds: float
    wait_seconds: float


def make_graph(artist: int, first: int, last: int) -> dict[str, Any]:
    """Return a graph whose first node has the number ``first``, and whose last but one ``last``."""
    color = (artist * 1_000 + first) % 0xFFFFFF
    size = {"width": 64, "height": 64, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {
            "class_type": "TestSleep",
            "inputs": {"value": ["2", 0], "seconds": _SAMPLER_SECONDS},
        },
        "4": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["3", 0],
                "upscale_method": "area",
                "width": 32 + last,
                "height": 32,
                "crop": "disabled",
            },
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


async def _edit(
    session: aiohttp.ClientSession, artist: int, count: int, *, changes_first: bool
) -> list[Edit]:
    rng = random.Random(artist)
    edits = []
    for number in range(count + 1):
        graph = make_graph(artist, number if changes_first else 0, number)
        edit = await _render(session, graph)
        if number:  # The first render is no edit.
            edits.append(edit)
        await asyncio.sleep(_LOOK_SECONDS * rng.uniform(0.5, 1.5))
    return edits


async def _render(session: aiohttp.ClientSession, graph: dict[str, Any]) -> Edit:
    started_at, sent_at = time.perf_counter(), time.time()
    async with session.post("/prompt", json={"prompt": graph}) as response:
        assert response.status == 200, await response.text()
        prompt_id = (await response.json())["prompt_id"]
    while True:
        async with session.get(f"/history/{prompt_id}") as response:
            entry = (await response.json()).get(prompt_id)
        if entry is not None:
            break
        await asyncio.sleep(0.05)
    seconds = time.perf_counter() - started_at
    status = entry["status"]
    assert status["status_str"] == "success", status
    messages = dict(status["messages"])
    cached_nodes = messages["execution_cached"]["nodes"]
    began_at = messages["execution_start"]["timestamp"] / 1e3
    return Edit(
        nodes=len(graph),
        executed=len(graph) - len(cached_nodes),
        seconds=seconds,
        wait_seconds=max(0.0, began_at - sent_at),
    )


async def measure(farm: Farm, artists: int, edits: int) -> dict[str, Any]:
    """Return the share of nodes that were executed, and the times of the renders.

    Args:
        artists: the number of artists, at least 2; the last one changes the first node.
    """
    keys = [create_key(farm, f"artist-{number}") for number in range(artists)]
    sessions = [aiohttp.ClientSession(farm.url, headers=authorize(key)) for key in keys]
    try:
        tasks = [
            _edit(session, number, edits, changes_first=number == artists - 1)
            for number, session in enumerate(sessions)
        ]
        results = await asyncio.gather(*tasks)
    finally:
        for session in sessions:
            await session.close()
    return {
        "artists": artists,
        "edits": _summarize([edit for result in results[:-1] for edit in result]),
        "new graphs": _summarize(results[-1]),
    }


def _summarize(edits: Sequence[Edit]) -> dict[str, float]:
    nodes = sum(edit.nodes for edit in edits)
    waits = sorted(edit.wait_seconds for edit in edits)
    return {
        "renders": len(edits),
        "executed_share": round(sum(edit.executed for edit in edits) / nodes, 3),
        "median_seconds": round(statistics.median(edit.seconds for edit in edits), 2),
        "median_wait": round(statistics.median(waits), 2),
        "p90_wait": round(waits[int(0.9 * len(waits))], 2),
    }


def main() -> None:
    """Run the benchmark and print its results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edits")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--artists", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--edits", type=int, default=10)
    arguments = parser.parse_args()
    with running_farm(_NO_SERVER, actors=arguments.processes) as farm:
        for artists in arguments.artists:
            result = asyncio.run(measure(farm, artists, arguments.edits))
            print(json.dumps({"processes": arguments.processes, **result}), flush=True)


if __name__ == "__main__":
    main()
