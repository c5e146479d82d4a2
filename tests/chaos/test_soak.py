"""Runs a small version of `make soak`."""

from __future__ import annotations

import pytest

from tests.chaos.soak import SoakPlan, soak
from tests.chaos.victims import KILLS
from tests.stack import RecordMeasurement, RunningStack

PLAN = SoakPlan(jobs=30, owners=5, actors=1, every=4.0, rounds=1, work=(0.3, 1.0), patience=240)


@pytest.mark.timeout(900)
async def test_no_job_is_lost_or_executed_twice(
    gateway: RunningStack, record_measurement: RecordMeasurement
) -> None:
    report = await soak(gateway, PLAN)
    record_measurement(report.sentence)
    assert report.problems == []
    assert report.kills.keys() == KILLS.keys(), "a kind of process was not killed"
    assert report.renders >= PLAN.jobs
