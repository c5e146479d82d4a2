"""Histories of earlier versions must still replay: running jobs outlive a deployment.

`tests/integration/test_jobs_histories.py` and `test_models_judge.py` record them on a real server.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from moyin.jobs.workflows.converter import DATA_CONVERTER
from moyin.jobs.workflows.job import JobWorkflow
from moyin.jobs.workflows.judge import JudgeWorkflow
from moyin.jobs.workflows.webhook import WebhookWorkflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
WORKFLOWS = [JobWorkflow, JudgeWorkflow, WebhookWorkflow]
OLDER = [path for path in HISTORIES if path.stem.endswith("-2") and path.stem != "webhook-2"]


@pytest.mark.parametrize("path", HISTORIES, ids=[path.stem for path in HISTORIES])
async def test_replay(path: Path) -> None:
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(history)


@pytest.mark.parametrize("path", OLDER, ids=[path.stem for path in OLDER])
async def test_replay_of_what_an_older_worker_did_with_a_new_job(path: Path) -> None:
    """A deployment replaces gateway, pools and workers in any order."""
    history = json.loads(path.read_text())
    [begun] = [
        event["workflowExecutionStartedEventAttributes"]
        for event in history["events"]
        if "workflowExecutionStartedEventAttributes" in event
    ]
    [payload] = begun["input"]["payloads"]
    job = json.loads(base64.b64decode(payload["data"]))
    assert job["version"] == 2
    payload["data"] = base64.b64encode(json.dumps({**job, "version": 3}).encode()).decode()
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, history))


def test_there_are_histories_of_every_end() -> None:
    found = {path.stem.rpartition("-")[0] for path in HISTORIES}
    assert found >= {"succeeded", "failed", "cancelled", "deadline", "retried", "webhook", "judge"}
