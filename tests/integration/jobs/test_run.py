"""Tests jobs from submission to their end on a real Temporal, SQLite and Valkey."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from aiohttp import web
from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import StepResult
from moyin.errors import JobNotFound, RenderFailed, WorkerLost
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.step_io import load_step, save_output, send_heartbeats
from moyin.jobs.workflows.types import StepInput, StepOutcome
from moyin.store.artifacts import derive_step_artifact_id
from tests.integration.gateway.fixtures import Farm
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "hello"}]},
}
ROOT = Path(__file__).parents[3]
WORKER = """
import asyncio
from deployments.workers.deployment import JobWorker

async def main():
    worker = JobWorker.__new__(JobWorker)
    await JobWorker.__init__(worker, 10)
    await asyncio.Event().wait()

asyncio.run(main())
"""
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"color": 1}}}
THREE: dict[str, Any] = {
    "kind": "pipeline",
    "steps": [
        CHAT,
        {"kind": "http", "request": {"method": "POST", "path": "/svc/one?x=1",
                                     "body": {"said": "${steps.0.text}"}}},
        {"kind": "render", "workflow": {
            "1": {"class_type": "Text", "inputs": {"text": "${steps.1.body.got.said}!"}}}},
    ],
}  # fmt: skip


class FakeRenderer:
    """Simulates the render pool of a farm; all other parts of the farm are real."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.tries = 0
        self.seen: list[Any] = []
        self.fail: list[Exception] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.started = asyncio.Event()
        self.cancelled = 0

    @activity.defn
    async def render_step(self, step: StepInput) -> StepOutcome:
        try:
            await self.farm.jobs.find(step.job_id)
        except JobNotFound as error:
            # Left in the queue by another test: Temporal is shared, the jobs are not.
            raise to_application_error(error) from error
        self.tries += 1
        self.started.set()
        async with send_heartbeats():
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.fail:
            raise self.fail.pop(0)
        _, _, graph = await load_step(self.farm.blobs, step)
        self.seen.append(graph)
        picture = b"\x89PNG\r\n\x1a\n" + step.job_id.encode()
        artifact = Artifact(
            id=derive_step_artifact_id(step.job_id, step.index, 0),
            name="a.png",
            media_type="image/png",
            size=len(picture),
            sha256=await self.farm.blobs.put(picture),
        )
        output = await save_output(self.farm.blobs, artifacts=[artifact])
        result = StepResult(
            index=step.index, output=output, artifacts=(artifact,), cost_usd=Decimal("0.5"),
            backend=activity.info().activity_type,
        )  # fmt: skip
        return StepOutcome(result=result)


@pytest.fixture
async def renderer(working_farm: Farm) -> Any:
    renderer = FakeRenderer(working_farm)
    async with working_farm.run_renderer(renderer.render_step):
        yield renderer
        renderer.hold.set()


def answer_when_released(release_event: asyncio.Event) -> Any:
    async def answer(_: web.Request) -> web.Response:
        await release_event.wait()
        return web.json_response({"slow": True})

    return answer


async def test_a_chat_job_ends_with_its_text_and_cost(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT)
    ended_job = await working_farm.wait_for_status(job["id"])
    assert ended_job["status"] == "succeeded"
    assert ended_job["outputs"][0]["text"] == "re: hello"
    assert ended_job["outputs"][0]["backend"] == "stub"
    assert ended_job["cost_usd"] == 0.0012


async def test_steps_use_outputs_of_earlier_steps(renderer: FakeRenderer) -> None:
    farm = renderer.farm
    job = await farm.submit_job({**THREE, "metadata": {"scene": "7"}})
    ended_job = await farm.wait_for_status(job["id"])
    assert ended_job["status"] == "succeeded", ended_job
    assert renderer.seen == [{"1": {"class_type": "Text", "inputs": {"text": "re: hello!"}}}]
    assert ended_job["outputs"][1]["body"]["got"] == {"said": "re: hello"}
    # The cost of a render comes from the ledger, in which this renderer books nothing.
    assert ended_job["cost_usd"] == pytest.approx(0.0012)
    assert ended_job["metadata"] == {"scene": "7"}
    (artifact,) = ended_job["artifacts"]
    async with farm.client.get(artifact["url"]) as response:
        assert (await response.read()).endswith(job["id"].encode())


async def test_retryable_step_is_retried(renderer: FakeRenderer) -> None:
    renderer.fail = [to_application_error(WorkerLost("gone"))] * 2
    job = await renderer.farm.submit_job({"kind": "render", "workflow": GRAPH})
    ended_job = await renderer.farm.wait_for_status(job["id"])
    assert ended_job["status"] == "succeeded"
    assert renderer.tries == 3


async def test_permanent_step_failure_fails_the_job_with_its_reason(renderer: FakeRenderer) -> None:
    error = RenderFailed("node 1 raised", details={"node": "1"})
    renderer.fail = [to_application_error(error)]
    job = await renderer.farm.submit_job({"kind": "render", "workflow": GRAPH})
    ended_job = await renderer.farm.wait_for_status(job["id"])
    assert ended_job["status"] == "failed"
    assert ended_job["error"] == {
        "code": "render_failed", "message": "node 1 raised", "details": {"node": "1", "step": 0},
    }  # fmt: skip
    assert renderer.tries == 1


async def test_a_service_that_refuses_fails_the_job(working_farm: Farm) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": "no such thing"}, status=404)

    working_farm.services.answers["/svc/no"] = refuse
    job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/no"}})
    ended_job = await working_farm.wait_for_status(job["id"])
    assert ended_job["error"]["code"] == "step_failed"
    assert ended_job["error"]["details"]["status"] == 404
    assert working_farm.services.count_calls("/svc/no") == 1


async def test_unavailable_service_is_retried(working_farm: Farm) -> None:
    async def answer_unavailable(request: web.Request) -> web.Response:
        if working_farm.services.count_calls("/svc/late") < 2:
            return web.Response(status=503, headers={"retry-after": "0"})
        return web.Response(text="here")

    working_farm.services.answers["/svc/late"] = answer_unavailable
    job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/late"}})
    ended_job = await working_farm.wait_for_status(job["id"])
    assert ended_job["outputs"][0]["text"] == "here"
    assert working_farm.services.count_calls("/svc/late") == 2


async def test_a_binary_answer_becomes_an_artifact(working_farm: Farm) -> None:
    async def send_picture(_: web.Request) -> web.Response:
        return web.Response(body=b"\x89PNG....", content_type="image/png")

    working_farm.services.answers["/svc/picture"] = send_picture
    job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/picture"}})
    (artifact,) = (await working_farm.wait_for_status(job["id"]))["artifacts"]
    assert (artifact["media_type"], artifact["size"]) == ("image/png", 8)


async def test_a_reference_to_a_missing_value_fails_the_job(working_farm: Farm) -> None:
    http_step = {"kind": "http", "request": {"path": "/svc/${steps.0.body.nothing}"}}
    job = await working_farm.submit_job({"kind": "pipeline", "steps": [CHAT, http_step]})
    ended_job = await working_farm.wait_for_status(job["id"])
    assert ended_job["error"]["code"] == "invalid_request"
    assert len(ended_job["outputs"]) == 1


async def test_a_reference_can_not_smuggle_in_another_route(working_farm: Farm) -> None:
    chat_step = {"kind": "chat", "request": {"model": "m", "messages": [{"content": "/../jobs"}]}}

    async def answer_chat(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "/../jobs"}}]})

    working_farm.services.answers["/v1/chat/completions"] = answer_chat
    http_step = {"kind": "http", "request": {"method": "POST", "path": "/svc${steps.0.text}"}}
    job = await working_farm.submit_job({"kind": "pipeline", "steps": [chat_step, http_step]})
    ended_job = await working_farm.wait_for_status(job["id"])
    assert ended_job["error"]["code"] == "invalid_request"
    assert len(working_farm.services.calls) == 1


async def test_the_deadline_ends_a_job(renderer: FakeRenderer) -> None:
    renderer.hold.clear()
    deadline = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    body = {"kind": "render", "workflow": GRAPH, "deadline": deadline}
    job = await renderer.farm.submit_job(body)
    ended_job = await renderer.farm.wait_for_status(job["id"])
    assert (ended_job["status"], ended_job["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_job_queued_without_a_worker_can_be_cancelled(farm: Farm) -> None:
    job = await farm.submit_job(CHAT)
    async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
        assert response.status == 202
    await farm.start_worker()
    ended_job = await farm.wait_for_status(job["id"])
    assert ended_job["status"] == "cancelled"
    assert farm.services.calls == []


async def test_running_step_can_be_cancelled(renderer: FakeRenderer) -> None:
    renderer.hold.clear()
    job = await renderer.farm.submit_job({"kind": "render", "workflow": GRAPH})
    await renderer.started.wait()
    async with renderer.farm.client.post(f"/jobs/{job['id']}/cancel") as response:
        assert response.status == 202
    assert (await renderer.farm.wait_for_status(job["id"]))["status"] == "cancelled"
    await eventually(lambda: renderer.cancelled)


async def test_cancelling_a_later_attempt_does_not_cancel_the_previous_workflow(
    renderer: FakeRenderer,
) -> None:
    """While only attempt 1 has a workflow, cancelling attempt 2 changes only the job's row."""
    renderer.hold.clear()
    job = await renderer.farm.submit_job({"kind": "render", "workflow": GRAPH})
    await renderer.started.wait()
    assert not await renderer.farm.launcher.cancel(job["id"], 2)
    assert (await renderer.farm.wait_for_status(job["id"]))["status"] == "cancelled"


async def test_job_waiting_for_a_retry_can_be_cancelled(working_farm: Farm) -> None:
    async def answer_unavailable(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"retry-after": "600"})

    working_farm.services.answers["/svc/away"] = answer_unavailable
    job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/away"}})
    await eventually(lambda: working_farm.services.calls)
    await working_farm.client.post(f"/jobs/{job['id']}/cancel")
    assert (await working_farm.wait_for_status(job["id"]))["status"] == "cancelled"


async def test_job_cancelled_at_any_moment_has_one_end(working_farm: Farm) -> None:
    farm = working_farm
    for delay_ms in range(0, 120, 8):
        job = await farm.submit_job(CHAT)
        await asyncio.sleep(delay_ms / 1000)
        async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
            assert response.status in (202, 409)
        ended_job = await farm.wait_for_status(job["id"])
        assert ended_job["status"] in ("cancelled", "succeeded")
        await asyncio.sleep(0.1)
        assert (await farm.fetch_job(job["id"]))["status"] == ended_job["status"]
        final_types = [
            e.type.value for e in await farm.events.replay(job["id"], None) if e.type.is_final
        ]
        assert set(final_types) == {ended_job["status"]}


async def test_cancel_of_a_finished_job_is_a_conflict(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT)
    await working_farm.wait_for_status(job["id"])
    async with working_farm.client.post(f"/jobs/{job['id']}/cancel") as response:
        assert response.status == 409
        assert (await response.json())["code"] == "job_finished"
    assert (await working_farm.fetch_job(job["id"]))["status"] == "succeeded"


async def test_retry_goes_on_after_the_last_finished_step(renderer: FakeRenderer) -> None:
    farm = renderer.farm
    renderer.fail = [to_application_error(RenderFailed("no"))]
    job = await farm.submit_job(THREE)
    assert (await farm.wait_for_status(job["id"]))["status"] == "failed"
    async with farm.client.post(f"/jobs/{job['id']}/retry") as response:
        assert response.status == 202
        assert (await response.json())["status"] == "queued"
    ended_job = await farm.wait_for_status(job["id"])
    assert (ended_job["status"], ended_job["attempts"], ended_job["error"]) == (
        "succeeded",
        2,
        None,
    )
    assert Counter(call[1] for call in farm.services.calls) == {
        "/v1/chat/completions": 1,
        "/svc/one?x=1": 1,
    }


async def test_retry_at_the_very_end_of_an_attempt_is_not_lost(working_farm: Farm) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=400)

    working_farm.services.answers["/svc/no"] = refuse
    for _ in range(5):
        job = await working_farm.submit_job({"kind": "http", "request": {"path": "/svc/no"}})
        for attempt in (2, 3):
            await working_farm.wait_for_status(job["id"])
            await working_farm.client.post(f"/jobs/{job['id']}/retry")
            assert (await working_farm.wait_for_status(job["id"]))["attempts"] == attempt


async def test_retry_of_a_running_or_succeeded_job_is_a_conflict(renderer: FakeRenderer) -> None:
    renderer.hold.clear()
    job = await renderer.farm.submit_job({"kind": "render", "workflow": GRAPH})
    async with renderer.farm.client.post(f"/jobs/{job['id']}/retry") as response:
        assert (response.status, (await response.json())["code"]) == (409, "job_not_finished")
    renderer.hold.set()
    await renderer.farm.wait_for_status(job["id"])
    async with renderer.farm.client.post(f"/jobs/{job['id']}/retry") as response:
        assert (response.status, (await response.json())["code"]) == (409, "job_finished")


async def test_the_sweeper_starts_jobs_that_were_only_accepted(farm: Farm) -> None:
    async def do_nothing(*_: object) -> None:
        return None

    with patch.object(farm.launcher, "start", do_nothing):
        job = await farm.submit_job(CHAT)
    await farm.start_worker()
    assert (await farm.wait_for_status(job["id"]))["status"] == "succeeded"
    assert len(farm.services.calls) == 1


async def test_repeated_start_makes_one_workflow(renderer: FakeRenderer) -> None:
    renderer.hold.clear()
    farm = renderer.farm
    job = await farm.submit_job({"kind": "render", "workflow": GRAPH})
    await asyncio.gather(*(farm.launcher.start(job["id"]) for _ in range(5)))
    renderer.hold.set()
    assert (await farm.wait_for_status(job["id"]))["status"] == "succeeded"
    await asyncio.sleep(0.3)
    await farm.launcher.start(job["id"])
    await asyncio.sleep(0.5)
    assert renderer.tries == 1
    assert (await farm.fetch_job(job["id"]))["attempts"] == 1


async def test_a_killed_worker_is_replaced_from_the_checkpoint(farm: Farm) -> None:
    """After kill -9 during step three, another worker runs only that step again."""
    farm.services.answers["/svc/slow"] = answer_when_released(asyncio.Event())
    steps = [CHAT, {"kind": "http", "request": {"path": "/svc/quick"}},
             {"kind": "http", "request": {"path": "/svc/slow"}}]  # fmt: skip
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, env=farm.build_environment(), cwd=ROOT
    )
    job = await farm.submit_job({"kind": "pipeline", "steps": steps})
    await eventually(lambda: farm.services.count_calls("/svc/slow"), seconds=30)
    worker.kill()
    await worker.wait()
    del farm.services.answers["/svc/slow"]
    await farm.start_worker()
    ended_job = await farm.wait_for_status(job["id"])
    assert (ended_job["status"], ended_job["attempts"]) == ("succeeded", 1)
    assert farm.services.count_calls("/v1/chat/completions") == 1
    assert farm.services.count_calls("/svc/quick") == 1
    assert farm.services.count_calls("/svc/slow") == 2


async def test_priority_and_owner_reach_temporal(farm: Farm) -> None:
    job = await farm.submit_job({**CHAT, "priority": 1})
    client = await farm.temporal.get_client()
    workflow_description = await client.get_workflow_handle(job["id"]).describe()
    priority = workflow_description.raw_description.workflow_execution_info.priority
    assert (priority.fairness_key, priority.fairness_weight) == ("1:ann", 16.0)


async def test_steps_call_the_gateway_with_a_service_token(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT)
    await working_farm.wait_for_status(job["id"])
    headers = working_farm.services.calls[0][3]
    assert headers["Authorization"].removeprefix("Bearer ").count(".") == 2
    assert headers["Idempotency-Key"] == f"chat-{job['id']}-0"


async def test_a_hundred_jobs_all_end_once(working_farm: Farm) -> None:
    jobs = await asyncio.gather(*(working_farm.submit_job(CHAT) for _ in range(100)))
    for job in jobs:
        assert (await working_farm.wait_for_status(job["id"], seconds=200))["status"] == "succeeded"
    assert working_farm.services.count_calls("/v1/chat/completions") == 100
