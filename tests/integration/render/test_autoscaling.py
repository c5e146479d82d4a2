"""Tests that nodes with a GPU are added when renders queue, and removed when the pool is idle."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import serve

from deployments.render.builder import build
from deployments.render.config import RenderArgs
from moyin.domain.job import JobStatus
from moyin.render.comfyui.install import ComfyUI
from tests.integration.render.autoscaling import (
    find_raylets,
    list_gpu_nodes,
    provide_fake_gpu_nodes,
)
from tests.integration.render.cluster import RenderFarm, render_farm
from tests.integration.render.fixtures import (
    build_picture_graph,
    build_sleepy_graph,
    list_comfyui_pids,
)
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.processes import with_lines
from tests.stack import RecordMeasurement
from tests.waiting import eventually

NODES = 2
PICTURES = 4


@pytest.mark.timeout(400)
async def test_nodes_are_added_for_the_queue_and_removed_after_it(
    comfyui: ComfyUI,
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    record_measurement: RecordMeasurement,
) -> None:
    labels = {"moyin-use": "render"}
    with provide_fake_gpu_nodes(
        tmp_path, max_nodes=NODES, idle_seconds=3, labels=labels
    ) as head_options:
        async with render_farm(
            comfyui, tmp_path, temporal_server, valkey_server, monkeypatch, [head_options]
        ) as (farm, cluster):
            # One actor more than there can be nodes: it waits, and nobody minds.
            pool = await farm.deploy(
                actors=NODES + 1,
                min_actors=0,
                gpus=1,
                idle_timeout=3,
                queue_patience=10,
                labels=labels,
            )
            assert list_gpu_nodes() == set()
            held_jobs = await _check_queue_adds_nodes(farm, pool, record_measurement)
            await _check_other_replicas()
            picture_job_ids = [
                await farm.submit_job(build_picture_graph()) for _ in range(PICTURES)
            ]
            await _cancel_jobs(farm, held_jobs)
            results = await asyncio.gather(*map(farm.wait_for_result, picture_job_ids))
            assert all(len(result.artifacts) == 1 for result in results)
            await _check_idle_nodes_are_removed(farm, pool, record_measurement)
            address = cluster.address
            # The head's own is left.
            await eventually(lambda: len(find_raylets(address)) == 1, 180)
        assert find_raylets(address) == []
    await eventually(lambda: list_comfyui_pids(tmp_path) == [])


async def _check_queue_adds_nodes(
    farm: RenderFarm, pool: Any, record_measurement: RecordMeasurement
) -> list[str]:
    """Check that a queue starts as many nodes as are allowed, and that one more actor waits.

    Returns:
        The ids of jobs that occupy the nodes until they are cancelled.
    """
    started_at = time.monotonic()
    first_job_id = await farm.submit_job(build_picture_graph())
    job_ids = [await farm.submit_job(build_sleepy_graph(600)) for _ in range(NODES + 2)]
    await eventually(list_gpu_nodes, 240)
    record_measurement(
        f"from a render without a node to the node: {time.monotonic() - started_at:.1f} s"
    )
    assert len((await farm.wait_for_result(first_job_id)).artifacts) == 1
    record_measurement(f"to its picture: {time.monotonic() - started_at:.1f} s")

    async def are_all_busy() -> dict[str, Any] | None:
        status: dict[str, Any] = await pool.status.remote()
        busy_actors = [a for a in status["actors"].values() if a["renderer"]["running"]]
        return status if len(busy_actors) == NODES and len(status["placing"]) == 1 else None

    status = await eventually(are_all_busy, 180)
    assert status["waiting"] == 2
    assert {actor["node_id"] for actor in status["actors"].values()} == list_gpu_nodes()
    return job_ids


async def _cancel_jobs(farm: RenderFarm, jobs: Sequence[str]) -> None:
    for job_id in jobs:
        # As the job's workflow does when it is cancelled: the row first, then it closes.
        assert await farm.jobs.finish(job_id, 1, JobStatus.CANCELLED, None)
        await farm.client.get_workflow_handle(job_id).cancel()


async def _check_other_replicas() -> None:
    """Check that replicas of other apps start on the head, because they would keep a node alive."""
    names = [f"other-{number}" for number in range(3)]
    apps = [
        serve.RunTarget(build(RenderArgs(pool=name, min_actors=0)), f"render-{name}", None)
        for name in names
    ]
    await asyncio.to_thread(serve.run_many, apps)
    replicas = _find_processes("ray::ServeReplica:render-other")
    assert len(replicas) == len(names)
    for replica in replicas:
        raylet = replica.parent()
        assert raylet is not None
        assert raylet.ppid() == os.getpid(), "a child of the autoscaler"


def _find_processes(title: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process, line in with_lines(children) if line.startswith(title)]


async def _check_idle_nodes_are_removed(
    farm: RenderFarm, pool: Any, record_measurement: RecordMeasurement
) -> None:
    started_at = time.monotonic()
    await eventually(lambda: list_comfyui_pids(farm.settings.data) == [], 180)
    record_measurement(f"idle for 3 s ends ComfyUI after {time.monotonic() - started_at:.1f} s")
    await eventually(lambda: list_gpu_nodes() == set(), 240)
    record_measurement(
        f"and the nodes, idle for 3 s more, after {time.monotonic() - started_at:.1f} s"
    )
    status = await pool.status.remote()
    assert (status["actors"], status["placing"]) == ({}, {})
