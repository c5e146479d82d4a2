"""Records the histories that `tests/unit/jobs/workflows/test_replay.py` replays.

Runs every kind of job and replays its history. With MOYIN_RECORD_HISTORIES=<version>, the histories
are also written to files. Record them after a deliberate change of the workflow, and keep the old
ones as long as jobs of their version may still run.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from moyin.jobs.workflows.client import DATA_CONVERTER
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from tests.integration.gateway.fixtures import Farm
from tests.waiting import eventually

FOLDER = Path(__file__).parents[2] / "unit" / "jobs" / "workflows" / "histories"
CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}


def build_http_step(path: str) -> dict[str, Any]:
    return {"kind": "http", "request": {"path": path}}


async def test_histories_of_all_job_ends_can_be_replayed(working_farm: Farm) -> None:
    farm = working_farm

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=400)

    async def answer_late(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def answer_third_call(_: web.Request) -> web.Response:
        return web.Response(status=503 if farm.services.count_calls("/svc/twice") < 2 else 200)

    farm.services.answers = {
        "/svc/no": refuse,
        "/svc/hang": answer_late,
        "/svc/twice": answer_third_call,
    }
    hook_url = f"{farm.services_url}/hook"
    bodies = {
        "succeeded": {
            "kind": "pipeline",
            "steps": [CHAT, build_http_step("/svc/yes")],
            "webhook": hook_url,
        },
        "failed": {"kind": "pipeline", "steps": [CHAT, build_http_step("/svc/no")]},
        "cancelled": build_http_step("/svc/hang"),
        "retried": build_http_step("/svc/twice"),
    }
    workflow_ids = {name: (await farm.submit_job(body))["id"] for name, body in bodies.items()}
    deadline = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    job = await farm.submit_job({**build_http_step("/svc/hang"), "deadline": deadline})
    workflow_ids["deadline"] = job["id"]
    await eventually(lambda: farm.services.count_calls("/svc/hang") == 2)
    await farm.client.post(f"/jobs/{workflow_ids['cancelled']}/cancel")
    for job_id in workflow_ids.values():
        await farm.wait_for_status(job_id)
    workflow_ids["webhook"] = f"webhook-{workflow_ids['succeeded']}-1"
    await eventually(lambda: farm.services.count_calls("/hook"))
    client = await farm.temporal.get_client()
    replayer = Replayer(workflows=[JobWorkflow, WebhookWorkflow], data_converter=DATA_CONVERTER)
    for name, workflow_id in workflow_ids.items():
        handle = client.get_workflow_handle(workflow_id)
        await handle.result()
        history = await handle.fetch_history()
        await replayer.replay_workflow(history)
        write_history(name, history)


def write_history(name: str, history: WorkflowHistory) -> None:
    """Write the history to a file if MOYIN_RECORD_HISTORIES is set."""
    version = os.environ.get("MOYIN_RECORD_HISTORIES")
    if version is None:
        return
    FOLDER.mkdir(exist_ok=True)
    anonymous_history = _anonymize(json.loads(history.to_json()))
    path = FOLDER / f"{name}-{version}.json"
    path.write_text(json.dumps(anonymous_history, indent=1, sort_keys=True) + "\n")


def _anonymize(history_part: Any) -> Any:
    """Replace values that identify the machine on which the history was recorded."""
    if isinstance(history_part, dict):
        replacements = {"identity": "worker", "stackTrace": "", "binaryChecksum": ""}
        return {
            key: replacements.get(key, _anonymize(inner_part))
            for key, inner_part in history_part.items()
        }
    if isinstance(history_part, list):
        return [_anonymize(inner_part) for inner_part in history_part]
    return history_part
