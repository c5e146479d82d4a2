"""Tests that after kill -9 of any part, a job has one result and no process is left over."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from tests.chaos import victims
from tests.chaos.client import FINAL, StackClient
from tests.chaos.graphs import picture, sleepy
from tests.stack import RecordMeasurement

_colors = itertools.count(0x102030, 0x010101)
SLEEP = 6.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def client(gateway: Any) -> StackClient:
    """Provide a client of a working farm; each test must leave the farm unchanged."""
    client = StackClient(gateway.url, gateway.api_key)
    job_id = client.submit({"kind": "render", "workflow": picture(next(_colors))})
    assert client.wait(job_id, FINAL, 300)["status"] == "succeeded"
    return client


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", victims.KILLS)
def test_a_running_job_survives_a_killed_process(
    name: str,
    gateway: Any,
    client: StackClient,
    record_measurement: RecordMeasurement,
) -> None:
    matches = victims.KILLS[name]
    count_before = len(victims.list_processes(gateway.data, matches))
    assert count_before >= 1
    comfyui_count = len(victims.list_processes(gateway.data, victims.is_comfyui))
    job_id = client.submit({"kind": "render", "workflow": sleepy(SLEEP, next(_colors))})
    client.wait_until(
        job_id,
        lambda job: job["status"] == "running" and job["progress"]["value"] > 0,
        180,
    )
    killed_pid = victims.kill_one(gateway.data, matches)
    killed_at = time.monotonic()

    job = client.wait(job_id, FINAL, 300)
    job_seconds = time.monotonic() - killed_at
    assert (job["status"], job["error"]) == ("succeeded", None)
    [artifact] = job["artifacts"]
    assert client.download(artifact["url"]).startswith(PNG)

    replacement_seconds = victims.wait_for_another(
        gateway.data, matches, killed_pid, count_before, 180
    )
    assert len(victims.list_processes(gateway.data, victims.is_comfyui)) == comfyui_count
    record_measurement(
        f"kill -9 {name}: job done {job_seconds:.1f} s later, "
        f"replacement there after {replacement_seconds:.1f} s more"
    )
