"""The soak that `make soak` runs, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from moyin.comfyui.install import ComfyUI
from tests.chaos.soak import KILLS, Plan, farm, soak
from tests.door import Measured

PLAN = Plan(jobs=45, owners=5, actors=2, every=4.0, rounds=1, work=(0.5, 1.5), patience=240)


@pytest.mark.timeout(600)
async def test_of_many_jobs_none_is_lost_and_none_done_twice(
    comfyui: ComfyUI, tmp_path: Path, measured: Measured
) -> None:
    async with farm(comfyui, tmp_path, PLAN.actors) as door:
        report = await soak(door, PLAN)
    measured(report.sentence)
    assert report.problems == []
    assert report.kills.keys() == KILLS.keys(), "one of each at least"
    assert report.renders >= PLAN.jobs
