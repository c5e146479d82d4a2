"""Runs the shell examples of docs/jobs.md against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.acceptance.clients_page import list_snippets
from tests.integration.gateway.fixtures import Farm

PAGE = Path(__file__).parents[3] / "docs" / "jobs.md"
# Run by tests/unit/jobs/test_webhook_receivers.py, tests/unit/clients/python/test_page.py,
# tests/unit/jobs/protocol/test_event_bodies.py, tests/acceptance/test_typescript_client.py and tests/acceptance/test_page_with_token.py.
RUN_HERE = {"submit", "poll", "follow", "token", "pipeline"}
RUN_ELSEWHERE = {
    "receiver-python", "receiver-typescript", "client", "client-typescript", "page", "webhook"
}  # fmt: skip


async def run_example(farm: Farm, name: str, job: str = "") -> str:
    """Run the snippet ``name``; return its output, with the final value of JOB as the last line.

    Args:
        job: the value of JOB before the snippet.
    """
    language, snippet = list_snippets(PAGE)[name]
    assert language == "sh"
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", snippet + '\nprintf "\\n%s" "$JOB"',
        env=os.environ | {"GATEWAY": farm.url, "KEY": farm.key, "JOB": job},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return output.decode()


async def submit_job(farm: Farm) -> str:
    return (await run_example(farm, "submit")).rpartition("\n")[2]


def test_every_snippet_is_run() -> None:
    assert list_snippets(PAGE).keys() == RUN_HERE | RUN_ELSEWHERE


async def test_a_job_is_submitted_once(working_farm: Farm) -> None:
    job_id = await submit_job(working_farm)
    assert await submit_job(working_farm) == job_id
    job = await working_farm.wait_for_status(job_id)
    assert (job["kind"], job["status"]) == ("chat", "succeeded")
    assert job["metadata"] == {"project": "dawn"}


async def test_a_job_is_polled(working_farm: Farm) -> None:
    job_id = await submit_job(working_farm)
    await working_farm.wait_for_status(job_id)
    decoder = json.JSONDecoder()
    output = await run_example(working_farm, "poll", job_id)
    shown_job, end_index = decoder.raw_decode(output)
    page, _ = decoder.raw_decode(output[end_index:].lstrip())
    assert (shown_job["id"], shown_job["status"]) == (job_id, "succeeded")
    assert [job["id"] for job in page["jobs"]] == [job_id]


async def test_a_job_is_followed_to_its_end(working_farm: Farm) -> None:
    job_id = await submit_job(working_farm)
    output = await run_example(working_farm, "follow", job_id)
    events = [line.removeprefix("event: ") for line in output.splitlines() if "event: " in line]
    assert (events[0], events[-1]) == ("queued", "succeeded")


async def test_a_page_follows_a_job_by_a_token(working_farm: Farm) -> None:
    job_id = await submit_job(working_farm)
    printed_token = json.loads(
        (await run_example(working_farm, "token", job_id)).rpartition("\n")[0]
    )
    url = f"/jobs/{job_id}/events?token={printed_token['token']}"
    async with working_farm.client.get(url, headers={"authorization": ""}) as response:
        assert response.status == 200
        assert "event: succeeded" in await response.text()


async def test_a_pipeline_uses_an_earlier_output(working_farm: Farm) -> None:
    accepted_job: Any = json.loads(
        (await run_example(working_farm, "pipeline")).rpartition("\n")[0]
    )
    job = await working_farm.wait_for_status(accepted_job["id"])
    assert job["priority"] == 4
    first_text, second_text = (output["text"] for output in job["outputs"])
    assert second_text == f"re: A poem on {first_text}"
