"""Tests that clients get no wrong response and no job fails when Ray dies or the farm is changed."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos import victims
from tests.chaos.client import FINAL, StackClient
from tests.chaos.graphs import hungry, picture, sleepy
from tests.chaos.outages import kill_part, watching_responses
from tests.chaos.watch import ResponseWatch
from tests.stack import RecordMeasurement, RunningStack

_colors = itertools.count(0x224466, 0x010101)
# `python -m tests.chaos.outages` kills every part, which takes a quarter of an hour.
_KILLED = ["gcs_server", "raylet"]


@pytest.fixture
def watch(gateway: RunningStack) -> Iterator[ResponseWatch]:
    """Run clients that check every response during the test."""
    with watching_responses(gateway) as watch:
        yield watch


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", _KILLED)
def test_no_response_misleads_while_ray_restarts(
    part: str, gateway: RunningStack, watch: ResponseWatch, record_measurement: RecordMeasurement
) -> None:
    restarts_before = _count_restarts(gateway)
    outage = kill_part(gateway, watch, part)
    record_measurement(outage.row)
    assert watch.wrong == []
    assert _count_restarts(gateway) == restarts_before + 1


@pytest.mark.timeout(900)
def test_the_entrance_answers_while_all_of_serve_restarts(
    gateway: RunningStack, watch: ResponseWatch, record_measurement: RecordMeasurement
) -> None:
    outage = kill_part(gateway, watch, "all of Serve")
    record_measurement(outage.row)
    assert watch.wrong == []
    # Until the stand-in listens, connections are refused; from then on each one is answered.
    outcomes = [call.outcome for call in outage.calls if call.service != "gRPC"]
    assert "refused" not in outcomes[outcomes.index("503") :]


@pytest.mark.timeout(900)
def test_serve_shutdown_causes_no_misleading_response(
    gateway: RunningStack, watch: ResponseWatch
) -> None:
    gateway.serve("shutdown", "-y")
    watch.wait_until_unavailable(time.monotonic())
    gateway.run("deploy")
    watch.wait_until_well(time.monotonic())
    assert watch.wrong == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("restart_method", ["down", "crash"])
def test_a_job_continues_at_its_third_step(gateway: RunningStack, restart_method: str) -> None:
    client = StackClient(gateway.url, gateway.api_key)
    steps = [
        {"kind": "render", "workflow": picture(next(_colors))},
        {"kind": "render", "workflow": picture(next(_colors))},
        {"kind": "render", "workflow": sleepy(6, next(_colors))},
    ]
    job_id = client.submit({"kind": "pipeline", "steps": steps})
    running_job = client.wait_until(
        job_id,
        lambda job: job["progress"]["step"] == 2 and job["progress"]["value"] > 0,
        300,
    )
    first_artifacts = running_job["artifacts"]
    assert len(first_artifacts) == 2

    if restart_method == "down":
        gateway.run("down")
        assert victims.list_processes(gateway.data, lambda line: True) == []
    else:
        gateway.kill_supervisor()
    gateway.run("up")

    job = client.wait(job_id, FINAL, 300)
    assert (job["status"], job["error"]) == ("succeeded", None)
    # Steps one and two ran only once: their artifacts are those from before the retry.
    assert job["artifacts"][:2] == first_artifacts
    assert len(job["artifacts"]) == 3
    rendered_steps = gateway.activities(job_id, "render_step")
    assert [rendered_steps.count(index) for index in (0, 1)] == [1, 1]


@pytest.mark.timeout(900)
def test_serve_deploy_changes_a_pool_without_failed_jobs(
    gateway: RunningStack, record_measurement: RecordMeasurement
) -> None:
    client = StackClient(gateway.url, gateway.api_key)
    try:
        old_pid = _change_pools_under_load(gateway, client, record_measurement)
        _check_move_to_larger_pool(client)
        command_lines = {
            p.pid: p.cmdline() for p in victims.list_processes(gateway.data, victims.is_comfyui)
        }
        assert len(command_lines) == 2 and old_pid not in command_lines
        [changed_pid] = [
            pid for pid, command_line in command_lines.items() if "--cache-lru" in command_line
        ]
    finally:
        gateway.run("deploy")
    victims.wait_for_another(gateway.data, victims.is_comfyui, changed_pid, 1, 180)
    _render_graph(client, picture(next(_colors)))


def _change_pools_under_load(
    gateway: RunningStack, client: StackClient, record_measurement: RecordMeasurement
) -> int:
    """Change the pools while more jobs arrive than can be rendered; all jobs must succeed.

    The change affects the share of the GPU, ComfyUI's flags and the set of pools. A running render
    is not interrupted, even if it takes longer than a pool may take to end. Returns the pid of the
    old ComfyUI.
    """
    _render_graph(client, picture(next(_colors)))
    [old_process] = victims.list_processes(gateway.data, victims.is_comfyui)
    start_time = Path(f"/proc/{old_process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    job_ids = [_submit(client, {"1": {"class_type": "Where", "inputs": {"seconds": 12.0}}})]
    client.wait(job_ids[0], {"running"}, 180)
    gateway.serve_deploy(_change_pools(yaml.safe_load(gateway.layout.serve_config.read_text())))
    started_at = time.monotonic()
    while old_process in victims.list_processes(gateway.data, victims.is_comfyui):
        job_ids.append(_submit(client, sleepy(0.3, next(_colors))))
        time.sleep(0.3)
    record_measurement(
        f"pool changed: the old pool ended {time.monotonic() - started_at:.1f} s later"
    )
    assert client.job(job_ids[-1])["status"] not in FINAL, "the new pool has no job left to render"
    ended_jobs = [client.wait(job_id, FINAL, 300) for job_id in job_ids]
    record_measurement(
        f"and all {len(ended_jobs)} jobs done after {time.monotonic() - started_at:.1f} s"
    )
    assert [(job["status"], job["error"]) for job in ended_jobs] == [("succeeded", None)] * len(
        ended_jobs
    )
    assert [len(job["artifacts"]) for job in ended_jobs] == [0, *[1] * (len(ended_jobs) - 1)]
    assert _read_text(ended_jobs[0]) == start_time
    try_counts = Counter(gateway.tries(job_id, "render_step") for job_id in job_ids)
    record_measurement(f"begun so often: {dict(try_counts)}")
    return old_process.pid


def _change_pools(config: dict[str, Any]) -> dict[str, Any]:
    [pool] = [app for app in config["applications"] if app["name"] == "render-default"]
    large_pool = copy.deepcopy(pool)
    pool["args"] |= {"gpus": 0.4, "cpus": 0.1, "larger_pool": "large"}
    pool["args"]["comfyui"]["flags"] = ["--cache-lru", "16"]
    large_pool["name"] = "render-large"
    large_pool["args"] |= {"pool": "large", "gpus": 0.6, "cpus": 0.1}
    config["applications"].append(large_pool)
    return config


def _check_move_to_larger_pool(client: StackClient) -> None:
    """Check that a render that runs out of memory twice is moved to the pool with more memory.

    Later renders with the same models must go to that pool at once.
    """
    first_job = _render_graph(client, hungry(0.5, "big.safetensors"))
    second_job = _render_graph(client, hungry(0.55, "big.safetensors"))
    small_job = _render_graph(client, hungry(0.3, "small.safetensors"))
    backends = [job["outputs"][0]["backend"] for job in (first_job, second_job, small_job)]
    assert backends == ["comfyui-large-0", "comfyui-large-0", "comfyui-default-0"]
    retried_job = _render_graph(client, {"1": {"class_type": "Tries", "inputs": {}}})
    # The render counts its tries: two by the first job, none by the second, and one by this job.
    assert _read_text(retried_job) == "3"


def _count_restarts(gateway: RunningStack) -> int:
    """Wait until everything is ready, and return how often the supervisor has restarted Ray."""
    state = json.loads(gateway.run("status", "--json").stdout)
    assert state["phase"] == "ready"
    restart_count: int = state["parts"]["ray"]["restarts"]
    return restart_count


def _submit(client: StackClient, graph: dict[str, Any]) -> str:
    return client.submit({"kind": "render", "workflow": graph})


def _read_text(job: dict[str, Any]) -> str:
    [text] = job["outputs"][0]["body"]["outputs"]["1"]["text"]
    return str(text)


def _render_graph(client: StackClient, graph: dict[str, Any]) -> dict[str, Any]:
    job = client.wait(_submit(client, graph), FINAL, 300)
    assert (job["status"], job["error"]) == ("succeeded", None)
    return job
