"""Tests what operators see of two pools on a real cluster, and of a killed ComfyUI."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from deployments.gateway.cluster.bodies import ClusterBody, GpuBody
from deployments.gateway.cluster.problems import ProblemFinder
from deployments.gateway.cluster.shared_reading import SharedReading
from deployments.gateway.cluster.snapshot import build_cluster
from deployments.gateway.cluster.sources import ClusterSources
from deployments.gateway.pools import ServePoolClient
from deployments.render.builder import build
from deployments.render.config import ComfyArgs, RenderArgs
from moyin.jobs.workflows.backlog import read_backlog
from moyin.jobs.workflows.client import TemporalConnection
from moyin.render.comfyui.install import ComfyUI
from tests.integration.render.cluster import render_farm
from tests.integration.render.fixtures import list_comfyui_pids
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.waiting import eventually

_POOLS = ("default", "fast")
pytestmark = pytest.mark.timeout(900)


async def test_pools_share_gpus_and_a_killed_comfyui_is_a_problem(
    comfyui: ComfyUI,
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"num_cpus": 8, "num_gpus": 1}]
    async with render_farm(
        comfyui, tmp_path, temporal_server, valkey_server, monkeypatch, nodes
    ) as (farm, _):
        temporal = TemporalConnection(
            farm.settings.temporal_address,
            farm.settings.temporal_namespace,
            retention=timedelta(days=1),
        )
        sources = ClusterSources(
            _POOLS,
            ServePoolClient(_POOLS).read_summary,
            partial(read_backlog, temporal),
            checks={"database": farm.database.ping, "artifacts": farm.blobs.ping},
            data_folder=tmp_path,
            is_config_rejected=lambda: False,
        )
        problem_finder = ProblemFinder()

        async def read_cluster() -> ClusterBody:
            reading = await sources.read()
            cluster = build_cluster(_POOLS, reading)
            return cluster.model_copy(
                update={"problems": problem_finder.find(cluster, reading, ())}
            )

        shared_reading = SharedReading(read_cluster, interval_seconds=0.5)
        for name, gpu_share in (("default", 0.5), ("fast", 0.25)):
            args = RenderArgs(
                pool=name, gpus=gpu_share, cpus=0.1, actors=1, comfyui=ComfyArgs(flags=())
            )
            await asyncio.to_thread(
                serve.run, build(args), name=f"render-{name}", route_prefix=None
            )

        async def read_if_both_ready() -> ClusterBody | None:
            cluster = await shared_reading.get()
            return cluster if all(pool.ready == 1 for pool in cluster.pools) else None

        cluster: ClusterBody = await eventually(read_if_both_ready, 300)
        [gpu] = list_gpus(cluster)
        assert {(s.actor, s.pool, s.fraction) for s in gpu.shares} == {
            ("comfyui-default-0", "default", 0.5),
            ("comfyui-fast-0", "fast", 0.25),
        }
        assert gpu.free == 0.25
        assert [pool.queued for pool in cluster.pools] == [0, 0]
        assert cluster.problems == []

        folder = tmp_path / "comfyui" / "run" / "comfyui-fast-0"
        [pid] = list_comfyui_pids(folder)
        os.kill(pid, signal.SIGKILL)

        async def find_problems() -> Any:
            return (await shared_reading.get()).problems

        [problem] = await eventually(find_problems, 60)
        assert (problem.code, problem.subject) == ("pool_without_renderer", "fast")
        assert "fast" in problem.message
        assert problem.advice
        assert problem.since is not None

        async def is_solved() -> bool:
            return not (await shared_reading.get()).problems and bool(await read_if_both_ready())

        await eventually(is_solved, 300)
        [new_pid] = list_comfyui_pids(folder)
        assert new_pid != pid
        pools_by_name = {pool.name: pool for pool in (await shared_reading.get()).pools}
        assert pools_by_name["fast"].renderers is not None
        assert pools_by_name["fast"].renderers[0].losses == 1
        await shared_reading.close()


def list_gpus(cluster: ClusterBody) -> list[GpuBody]:
    assert cluster.nodes is not None
    return [gpu for node in cluster.nodes for gpu in node.gpus]
