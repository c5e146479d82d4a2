"""Checks that a pool loads models less often than if it ran the jobs in order of arrival."""

from __future__ import annotations

import asyncio
import time
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
    runs = await asyncio.gather(*(_read_run(farm, job_id) for job_id in job_ids))

    total_loads = sum(load_count for _, load_count in runs)
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
    owner_order = [owner for (started_at, _), owner in sorted(zip(runs, owners, strict=True))]
    last_positions = {
        owner: len(owner_order) - owner_order[::-1].index(owner) for owner in owner_order
    }
    assert last_positions["flood"] == len(owner_order), (
        "all of the others' before the last of the flood"
    )
    assert set(owner_order[: len(owner_order) // 2]) == set(owners), "everybody in the first half"


async def _read_run(farm: RenderFarm, job_id: str) -> tuple[int, bool]:
    """Return when ComfyUI began the job (in ms), and whether it had to load the model of node 3."""
    output = from_json(await farm.blobs.get((await farm.wait_for_result(job_id)).output))
    messages = dict(output["record"]["messages"])
    return messages["execution_start"]["timestamp"], "3" not in messages["execution_cached"][
        "nodes"
    ]


async def _has_waiting(pool: Any, count: int) -> bool:
    return bool((await pool.status.remote())["waiting"] == count)
