"""Histories of earlier versions must still replay: running jobs outlive a deployment.

`tests/integration/test_jobs_histories.py` records them on a real server.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from workflows.converter import DATA_CONVERTER
from workflows.job import JobWorkflow
from workflows.webhook import WebhookWorkflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


@pytest.mark.parametrize("path", HISTORIES, ids=[path.stem for path in HISTORIES])
async def test_replay(path: Path) -> None:
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    replayer = Replayer(workflows=[JobWorkflow, WebhookWorkflow], data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(history)


def test_there_are_histories_of_every_end() -> None:
    found = {path.stem.rpartition("-")[0] for path in HISTORIES}
    assert found >= {"succeeded", "failed", "cancelled", "deadline", "retried", "webhook"}
