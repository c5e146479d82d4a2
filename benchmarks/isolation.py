"""Measures what isolation costs: compares ComfyUIs with ``isolation: off`` and ``strict``.

``python -m benchmarks.isolation`` needs no stack. Each round starts one ComfyUI of each kind. They
render graphs of half a second in turns, so that other load of the machine affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moyin.domain.renderer import RenderRequest
from moyin.render.comfyui.install import find_comfyui
from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.settings import Settings
from moyin.store.blobs import BlobStore

_TEST_NODES = "tests/execution/testing_nodes/testing-pack"
_SECONDS = 0.5
_KINDS = (Isolation.OFF, Isolation.STRICT)
_colors = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class IsolationCost:
    """The seconds of a start with its first prompt, and of a render of half a second, as medians.

    Attributes:
        start_more: how many seconds longer a start with isolation takes.
        render_ratio: duration of a render with isolation divided by that of one without.
    """

    start_off: float
    start_strict: float
    start_more: float
    render_off: float
    render_strict: float
    render_ratio: float


async def measure_isolation(rounds: int, graphs: int) -> IsolationCost:
    """Compare the speed of a ComfyUI with isolation and one without in ``rounds`` rounds.

    Each round starts both, and each of them renders ``graphs`` graphs.
    """
    start_times: list[dict[Isolation, float]] = []
    render_times: list[dict[Isolation, float]] = []
    for number in range(rounds):
        # The order alternates, because the first one finds fewer files in the page cache.
        isolation_kinds = _KINDS if number % 2 else _KINDS[::-1]
        with tempfile.TemporaryDirectory(prefix="moyin-bench-") as folder:
            async with AsyncExitStack() as exit_stack:
                renderers = {
                    isolation: _open_renderer(Path(folder), isolation)
                    for isolation in isolation_kinds
                }
                start_times.append({})
                for isolation, renderer in renderers.items():
                    started_at = time.perf_counter()
                    await renderer.start()
                    exit_stack.push_async_callback(renderer.close)
                    await _time_render(renderer, 0)
                    start_times[-1][isolation] = time.perf_counter() - started_at
                for _ in range(graphs):
                    render_times.append({})
                    for isolation, renderer in renderers.items():
                        started_at = time.perf_counter()
                        await _time_render(renderer, _SECONDS)
                        render_times[-1][isolation] = time.perf_counter() - started_at
    off_kind, strict_kind = _KINDS
    return IsolationCost(
        start_off=statistics.median(pair[off_kind] for pair in start_times),
        start_strict=statistics.median(pair[strict_kind] for pair in start_times),
        start_more=statistics.median(pair[strict_kind] - pair[off_kind] for pair in start_times),
        render_off=statistics.median(pair[off_kind] for pair in render_times),
        render_strict=statistics.median(pair[strict_kind] for pair in render_times),
        render_ratio=statistics.median(pair[strict_kind] / pair[off_kind] for pair in render_times),
    )


def _open_renderer(folder: Path, isolation: Isolation) -> ComfyRenderer:
    installation = find_comfyui(Settings())
    options = ComfyOptions(
        home=installation.home,
        python=installation.python,
        folder=folder / isolation,
        models=folder / "models",
        custom_nodes=(installation.home / _TEST_NODES,),
        cpu=True,
        isolation=isolation,
    )
    return ComfyRenderer(options, BlobStore(f"file://{folder / 'blobs'}"))


async def _time_render(renderer: ComfyRenderer, seconds: float) -> None:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": next(_colors)}
    graph: dict[str, Any] = {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
    }
    request = RenderRequest(prompt_id=str(uuid.uuid4()), graph=graph)
    async for _ in renderer.render(request):
        pass


def main() -> None:
    """Measure what isolation costs, and print the `IsolationCost` as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--graphs", type=int, default=25)
    options = parser.parse_args()
    isolation_cost = asyncio.run(measure_isolation(options.rounds, options.graphs))
    print(json.dumps({name: round(figure, 3) for name, figure in asdict(isolation_cost).items()}))


if __name__ == "__main__":
    main()
