"""Tests that recorded histories replay with the current workflows, since jobs outlive deployments.

`tests/integration/jobs/test_histories.py` and `tests/integration/text/test_judge.py` record the
histories on a real server.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from moyin.jobs.workflows.client import DATA_CONVERTER
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.judge import JudgeWorkflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
WORKFLOWS = [JobWorkflow, JudgeWorkflow, WebhookWorkflow]


@pytest.mark.parametrize("path", HISTORIES, ids=[path.stem for path in HISTORIES])
async def test_a_recorded_history_replays(path: Path) -> None:
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(history)


def test_every_kind_of_job_end_has_a_recorded_history() -> None:
    recorded_ends = {path.stem.rpartition("-")[0] for path in HISTORIES}
    assert recorded_ends == {
        "succeeded", "failed", "cancelled", "deadline", "retried", "webhook", "judge",
    }  # fmt: skip
