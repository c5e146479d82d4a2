"""Checks that a pool uses again what its ComfyUIs have loaded and computed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from benchmarks.scheduling import Farm, Load, simulate_fifo
from moyin.render.scheduling.rules import PendingRender
from tests.integration.render.cluster import RenderFarm
from tests.integration.render.fixtures import (
    build_loading_graph,
    build_sleepy_graph,
    write_transformers,
)
from tests.stack import RecordMeasurement
from tests.waiting import eventually

LARGE_MODELS = ("k.safetensors", "l.safetensors", "m.safetensors", "n.safetensors")


def write_large_models(folder: Path) -> tuple[str, ...]:
    """Write models whose size the pool cannot read; return ComfyUI's arguments that add them.

    The pool assumes the usual size of such models, so that unloading them counts as expensive, even
    though this machine loads half a MB quickly.
    """
    write_transformers(folder / "large", *LARGE_MODELS)
    config_path = folder / "paths.yaml"
    config_path.write_text(f"large:\n  diffusion_models: {folder / 'large'}\n")
    return ("--extra-model-paths-config", str(config_path))


async def check_models_stay_loaded(
    farm: RenderFarm, pool: Any, record_measurement: RecordMeasurement
) -> None:
    """Check that a pool rarely changes models, and that an owner with many jobs delays no other owner.

    Four models compete for two actors; one owner submits half of all jobs before the other owners.
    """
    started_at = time.monotonic()
    changes_before = (await pool.status.remote())["changes"]
    blocking_job_ids = [await farm.submit_job(build_sleepy_graph(120)) for _ in range(2)]
    for job_id in blocking_job_ids:
        await farm.wait_for_renderer(pool, job_id)
    owners = ["flood"] * 12 + ["bea", "cid", "dot"] * 4
    submissions = [(owner, LARGE_MODELS[n % 4]) for n, owner in enumerate(owners)]
    job_ids = [
        await farm.submit_job(build_loading_graph(model), owner=owner)
        for owner, model in submissions
    ]
    await eventually(lambda: _has_waiting(pool, len(job_ids)), 180)
    for job_id in blocking_job_ids:
        await farm.cancel_job(job_id)
    processes = await _find_processes(pool, job_ids)
    starts = await asyncio.gather(*(_read_start(farm, job_id) for job_id in job_ids))

    # ComfyUI reports a loaded model only to the tenant that has loaded it, so loads are counted by
    # the order in which each process has executed the jobs.
    runs = sorted(zip(starts, job_ids, submissions, strict=True))
    total_loads = 0
    loaded_models: dict[tuple[str, int], str] = {}
    for _, job_id, (_, model) in runs:
        total_loads += loaded_models.get(processes[job_id]) != model
        loaded_models[processes[job_id]] = model
    fifo_run = simulate_fifo(
        Load(
            renders=tuple(
                PendingRender(id=str(n), priority=3, arrived=0, owner=owner, models={model: 1})
                for n, (owner, model) in enumerate(submissions)
            ),
            seconds={str(n): 1.0 for n in range(len(submissions))},
        ),
        Farm(actors=2, window=len(submissions)),
    )
    elapsed_seconds = time.monotonic() - started_at
    record_measurement(
        f"{len(job_ids)} jobs, 4 models, 2 ComfyUIs: {total_loads} loads in {elapsed_seconds:.1f} s, "
        f"first come, first served {fifo_run.changes}"
    )
    assert total_loads == (await pool.status.remote())["changes"] - changes_before, (
        "as the pool believes"
    )
    assert 4 <= total_loads <= 0.25 * fifo_run.changes
    owner_order = [owner for _, _, (owner, _) in runs]
    last_positions = {
        owner: len(owner_order) - owner_order[::-1].index(owner) for owner in owner_order
    }
    assert last_positions["flood"] == len(owner_order), (
        "all of the others' before the last of the flood"
    )
    assert set(owner_order[: len(owner_order) // 2]) == set(owners), "everybody in the first half"


async def check_edits_execute_only_what_changed(farm: RenderFarm) -> None:
    """Check that edits of one owner's graph use the results of the render before.

    Two actors are idle, and the one that has been idle longest has none of the results.
    """
    graph = build_sleepy_graph(0.5)
    for number in range(5):
        graph["2"]["inputs"]["filename_prefix"] = f"edit-{number}"
        messages = await _read_messages(farm, await farm.submit_job(graph, owner="eve"))
        cached_nodes = messages["execution_cached"]["nodes"]
        assert sorted(cached_nodes) == (["1", "3"] if number else []), number


async def _read_start(farm: RenderFarm, job_id: str) -> int:
    """Return when ComfyUI began the job, in ms."""
    started_at: int = (await _read_messages(farm, job_id))["execution_start"]["timestamp"]
    return started_at


async def _read_messages(farm: RenderFarm, job_id: str) -> dict[str, Any]:
    """Wait for the job's result, and return the messages in ComfyUI's history by their types."""
    output = from_json(await farm.blobs.get((await farm.wait_for_result(job_id)).output))
    return dict(output["record"]["messages"])


async def _find_processes(pool: Any, job_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return the actor and process id of the ComfyUI that has executed each job."""
    processes: dict[str, tuple[str, int]] = {}
    while len(processes) < len(job_ids):
        for name, actor in (await pool.status.remote())["actors"].items():
            renderer = actor["renderer"]
            for job_id in set(renderer["known"]).intersection(job_ids):
                processes.setdefault(job_id, (name, renderer["pid"]))
        await asyncio.sleep(0.3)
    return processes


async def _has_waiting(pool: Any, count: int) -> bool:
    return bool((await pool.status.remote())["waiting"] == count)
