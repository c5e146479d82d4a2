"""A stop of the whole stack in the middle of a job."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.chaos import victims
from tests.chaos.client import FINAL, DoorClient
from tests.chaos.graphs import picture, sleepy

_colors = itertools.count(0x224466, 0x010101)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["down", "crash"])
def test_a_three_step_job_goes_on_at_step_three(own_door: Any, how: str) -> None:
    client = DoorClient(own_door.url, own_door.api_key)
    steps = [
        {"kind": "render", "workflow": picture(next(_colors))},
        {"kind": "render", "workflow": picture(next(_colors))},
        {"kind": "render", "workflow": sleepy(8, next(_colors))},
    ]
    job_id = client.submit({"kind": "pipeline", "steps": steps})
    running = client.wait_until(
        job_id,
        lambda job: job["progress"]["step"] == 2 and job["progress"]["value"] > 0,
        120,
    )
    first_two = running["artifacts"]
    assert len(first_two) == 2

    if how == "down":
        own_door.run("down")
        assert victims.processes(own_door.data, lambda line: True) == []
    else:
        own_door.kill_supervisor()
    own_door.run("up")

    job = client.wait(job_id, FINAL, 120)
    assert (job["status"], job["error"]) == ("succeeded", None)
    # The checkpoints of steps one and two are the ones from before: they ran once.
    assert job["artifacts"][:2] == first_two
    assert len(job["artifacts"]) == 3
    ran = own_door.activities(job_id, "render_step")
    assert [ran.count(index) for index in (0, 1)] == [1, 1]
