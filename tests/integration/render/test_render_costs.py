"""Tests the cost of renders in a pool with a price, on a real cluster with a real ComfyUI."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.client import WorkflowFailureError

from moyin.render.comfyui.install import ComfyUI
from moyin.store.usage import UsageEntry
from moyin.store.usage_reports import CallFilter, GroupBy, PriceClasses, UsageReports
from tests.chaos import victims
from tests.chaos.busy import list_executions
from tests.chaos.graphs import busy
from tests.integration.render.cluster import OWNER, RenderFarm, render_farm
from tests.integration.render.fixtures import build_upscaled_graph, list_comfyui_pids, write_models
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.processes import with_lines
from tests.stack import RecordMeasurement
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(500)
# A render occupies half of a GPU, an hour of which costs 1,000 US dollars.
_PRICE: dict[str, Any] = {"gpus": 0.5, "usd_per_gpu_hour": Decimal(1000)}
_USD_PER_SECOND = Decimal(500) / 3600
_MODEL = "model.safetensors"
_colors = itertools.count(0x300000)


async def test_renders_cost_their_measured_time_once(
    comfyui: ComfyUI,
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    record_measurement: RecordMeasurement,
) -> None:
    nodes = [{"num_cpus": 4, "num_gpus": 1}]
    async with render_farm(
        comfyui, tmp_path, temporal_server, valkey_server, monkeypatch, nodes
    ) as (farm, _):
        models_folder = tmp_path / "models"
        await asyncio.to_thread(write_models, farm.comfyui.python, models_folder, _MODEL)
        pool = await farm.deploy(models_folder, actors=1, **_PRICE)
        await farm.wait_until_ready(pool, 1)
        job_ids = [
            await _check_repeated_graph_is_free(farm, record_measurement),
            await _check_failed_render_costs(farm),
            await _check_cancelled_render_costs(farm),
            await _check_killed_replica(farm, pool),
            await _check_killed_comfyui(farm),
            await _check_killed_actor(farm, pool),
        ]
        loading_job = await _check_loading_is_separate(farm)
        job_ids.append(loading_job)
        costs_usd = [(await farm.jobs.find(job_id)).cost_usd for job_id in job_ids]
        usage_sums = await UsageReports(farm.database).sum_calls(
            CallFilter(owner=OWNER), [GroupBy.OPERATION], PriceClasses()
        )
        assert {usage_sum.group for usage_sum in usage_sums} == {("render",)}
        assert sum(usage_sum.cost_usd for usage_sum in usage_sums) == sum(costs_usd)
        booked_seconds = Decimal(sum(usage_sum.quantity for usage_sum in usage_sums)) / 1000
        assert abs(sum(costs_usd) - booked_seconds * _USD_PER_SECOND) < Decimal("0.01")

        rows, _ = await UsageReports(farm.database).list_calls(CallFilter(owner=OWNER), limit=200)
        executions = list_executions(farm.settings.data)
        assert len([row for row in rows if row.request_id != loading_job]) == len(executions)
        assert [execution.ended for execution in executions].count(False) == 2
        # By ComfyUI's own clock no second was forgotten, but for the actor that was lost.
        measured_seconds = sum(execution.seconds for execution in executions)
        assert float(booked_seconds) > measured_seconds - 3
        assert (
            0 < sum(usage_sum.load_milliseconds for usage_sum in usage_sums) < 1000 * booked_seconds
        )
        record_measurement(
            f"renders of {measured_seconds:.2f} s by ComfyUI's clock were booked with "
            f"{booked_seconds:.2f} s"
        )


async def _list_rows(farm: RenderFarm, job_id: str) -> list[UsageEntry]:
    rows, _ = await UsageReports(farm.database).list_calls(CallFilter(owner=OWNER), limit=200)
    return [row for row in rows if row.request_id == job_id]


async def _check_repeated_graph_is_free(
    farm: RenderFarm, record_measurement: RecordMeasurement
) -> str:
    graph = busy(2, next(_colors))
    started_at = time.monotonic()
    job_id = await farm.submit_job(graph)
    result = await farm.wait_for_result(job_id)
    elapsed_seconds = time.monotonic() - started_at
    assert result.gpu_seconds is not None
    record_measurement(
        f"a render of 2 s: {result.gpu_seconds:.2f} s of the GPU, "
        f"done after {elapsed_seconds:.2f} s"
    )
    assert 2 <= result.gpu_seconds <= elapsed_seconds
    expected_usd = Decimal(result.gpu_seconds) * _USD_PER_SECOND
    assert abs(result.cost_usd - expected_usd) < Decimal("0.001")
    [row] = await _list_rows(farm, job_id)
    assert (row.cost_usd, row.quantity) == (result.cost_usd, round(result.gpu_seconds * 1000))
    assert (await farm.jobs.find(job_id)).cost_usd == row.cost_usd

    assert (row.load_milliseconds, result.load_seconds) == (0, 0)

    second_job_id = await farm.submit_job(graph)
    cached_result = await farm.wait_for_result(second_job_id)
    assert (cached_result.cached, cached_result.cost_usd, cached_result.gpu_seconds) == (True, 0, 0)
    assert await _list_rows(farm, second_job_id) == []
    return job_id


async def _check_failed_render_costs(farm: RenderFarm) -> str:
    job_id = await farm.submit_job(busy(1, next(_colors), fails=True))
    with pytest.raises(WorkflowFailureError):
        await farm.wait_for_result(job_id)
    [row] = await _list_rows(farm, job_id)
    assert (row.error, row.cost_usd > 0) == ("render_failed", True)
    assert (await farm.jobs.find(job_id)).cost_usd == row.cost_usd
    return job_id


async def _submit_and_wait_until_it_runs(farm: RenderFarm, graph: dict[str, Any]) -> str:
    """Submit a job, wait until ComfyUI executes its slow node, and return the job's id."""
    executions_before = len(list_executions(farm.settings.data))
    job_id = await farm.submit_job(graph)

    async def is_running() -> bool:
        # What is killed between its start and the node's start is booked, but the node knows nothing.
        has_started = (await farm.jobs.find(job_id)).started_at is not None
        return has_started and len(list_executions(farm.settings.data)) > executions_before

    await eventually(is_running, 180)
    return job_id


async def _check_cancelled_render_costs(farm: RenderFarm) -> str:
    job_id = await _submit_and_wait_until_it_runs(farm, busy(30, next(_colors)))
    await farm.cancel_job(job_id)

    async def find_row() -> UsageEntry | None:
        return next(iter(await _list_rows(farm, job_id)), None)

    row = await eventually(find_row, 60)
    assert (row.status, row.cost_usd > 0) == ("cancelled", True)
    assert (await farm.jobs.find(job_id)).cost_usd == row.cost_usd
    return job_id


async def _check_killed_replica(farm: RenderFarm, pool: Any) -> str:
    job_id = await _submit_and_wait_until_it_runs(farm, busy(8, next(_colors)))
    replicas = with_lines(psutil.Process().children(recursive=True))
    [replica_process] = [
        p for p, line in replicas if "ray::ServeReplica" in line and "RenderPool" in line
    ]
    os.kill(replica_process.pid, signal.SIGKILL)
    result = await farm.wait_for_result(job_id)
    assert result.gpu_seconds is not None
    assert result.gpu_seconds >= 8
    [row] = await _list_rows(farm, job_id)
    assert row.cost_usd == result.cost_usd == (await farm.jobs.find(job_id)).cost_usd
    await farm.wait_until_ready(pool, 1)
    return job_id


async def _check_killed_comfyui(farm: RenderFarm) -> str:
    job_id = await _submit_and_wait_until_it_runs(farm, busy(6, next(_colors)))
    for pid in list_comfyui_pids(farm.settings.data):
        os.kill(pid, signal.SIGKILL)
    result = await farm.wait_for_result(job_id)
    rows = await _list_rows(farm, job_id)
    assert sorted(row.error or "" for row in rows) == ["", "worker_lost"]
    assert (await farm.jobs.find(job_id)).cost_usd == sum(row.cost_usd for row in rows)
    assert sum(row.cost_usd for row in rows) > result.cost_usd
    return job_id


async def _check_killed_actor(farm: RenderFarm, pool: Any) -> str:
    job_id = await _submit_and_wait_until_it_runs(farm, busy(6, next(_colors)))

    async def is_render_seen() -> bool:
        # The pool books what it saw last of an actor that is lost.
        actors = (await pool.status.remote())["actors"]
        return any(job_id in actor["renderer"]["running"] for actor in actors.values())

    await eventually(is_render_seen, 60)
    workers = with_lines(psutil.Process().children(recursive=True))
    [actor_process] = [process for process, line in workers if victims.is_comfyui_actor(line)]
    actor_process.kill()
    result = await farm.wait_for_result(job_id)
    rows = await _list_rows(farm, job_id)
    assert sorted(row.error or "" for row in rows) == ["", "worker_lost"]
    assert (await farm.jobs.find(job_id)).cost_usd == sum(row.cost_usd for row in rows)
    assert sum(row.cost_usd for row in rows) > result.cost_usd
    return job_id


async def _check_loading_is_separate(farm: RenderFarm) -> str:
    graph = build_upscaled_graph(_MODEL)
    # A node that names a model counts as one that loads. The tiny model itself is loaded in no time.
    sleep_inputs = {"value": ["1", 0], "seconds": 1.0, "model_name": _MODEL}
    graph["6"] = {"class_type": "TestSleep", "inputs": sleep_inputs}
    graph["4"]["inputs"]["image"] = ["6", 0]
    graph["5"]["inputs"]["seconds"] = 1.0
    job_id = await farm.submit_job(graph)
    result = await farm.wait_for_result(job_id)
    assert result.gpu_seconds is not None
    assert result.load_seconds is not None
    # Messages of ComfyUI that are read late move the time by less than half a second.
    assert 0.5 < result.load_seconds < result.gpu_seconds - 0.5
    [row] = await _list_rows(farm, job_id)
    assert row.load_milliseconds == round(result.load_seconds * 1000)
    return job_id
