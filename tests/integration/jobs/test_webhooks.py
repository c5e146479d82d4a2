"""Tests webhooks of real jobs with the Standard Webhooks project's own library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError

from moyin.errors import ServiceUnavailable
from tests.integration.gateway.fixtures import CONCURRENCY, Farm
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}


class ScriptedReceiver:
    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[dict[str, str], str]] = asyncio.Queue()
        self.statuses: list[int] = []
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.answered = 0

    async def handle_delivery(self, request: web.Request) -> web.Response:
        self.got.put_nowait((dict(request.headers), await request.text()))
        await asyncio.sleep(self.delay)
        await self.open.wait()
        self.answered += 1
        status = self.statuses.pop(0) if self.statuses else 204
        headers = {"location": "/elsewhere"} if status == 302 else {}
        return web.Response(status=status, headers=headers)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[ScriptedReceiver, str]]:
    receiver = ScriptedReceiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle_delivery)
    async with TestServer(app) as server:
        yield receiver, str(server.make_url("/hook"))


async def read_webhook_secret(farm: Farm) -> str:
    async with farm.client.get("/jobs/webhook-secret") as response:
        secret: str = (await response.json())["secret"]
        return secret


async def test_webhook_is_signed_with_the_tenants_secret(
    working_farm: Farm, receiver: tuple[ScriptedReceiver, str]
) -> None:
    hook_server, url = receiver
    job = await working_farm.submit_job({**CHAT, "webhook": url, "metadata": {"a": "b"}})
    headers, body = await asyncio.wait_for(hook_server.got.get(), 20)
    payload = Webhook(await read_webhook_secret(working_farm)).verify(body, headers)
    assert payload["type"] == "job.succeeded"
    assert (payload["data"]["id"], payload["data"]["metadata"]) == (job["id"], {"a": "b"})
    assert payload["data"]["status"] == "succeeded"
    async with working_farm.other.get("/jobs/webhook-secret") as response:
        other_secret = (await response.json())["secret"]
    with pytest.raises(WebhookVerificationError):
        Webhook(other_secret).verify(body, headers)


async def test_a_failing_receiver_is_tried_again_with_the_same_id(
    working_farm: Farm, receiver: tuple[ScriptedReceiver, str]
) -> None:
    hook_server, url = receiver
    hook_server.statuses = [500]
    job = await working_farm.submit_job({**CHAT, "webhook": url})
    first_delivery = await asyncio.wait_for(hook_server.got.get(), 20)
    assert (await working_farm.fetch_job(job["id"]))["status"] == "succeeded"
    second_delivery = await asyncio.wait_for(hook_server.got.get(), 20)
    assert first_delivery[0]["webhook-id"] == second_delivery[0]["webhook-id"]
    assert first_delivery[1] == second_delivery[1]


async def test_slow_webhook_receiver_delays_no_job(
    working_farm: Farm, receiver: tuple[ScriptedReceiver, str]
) -> None:
    hook_server, url = receiver
    hook_server.delay = 3
    started_at = time.monotonic()
    job = await working_farm.submit_job({**CHAT, "webhook": url})
    await working_farm.wait_for_status(job["id"])
    assert time.monotonic() - started_at < 3
    await working_farm.client.get(f"/jobs/{job['id']}/events")
    assert time.monotonic() - started_at < 3
    await asyncio.wait_for(hook_server.got.get(), 20)


async def test_slow_receivers_do_not_delay_other_webhooks(
    working_farm: Farm, receiver: tuple[ScriptedReceiver, str]
) -> None:
    """Jobs still end, even if more receivers are slow than a worker runs activities at a time."""
    hook_server, url = receiver
    hook_server.open.clear()
    waiting_jobs = [
        await working_farm.submit_job({**CHAT, "webhook": url}) for _ in range(CONCURRENCY + 2)
    ]
    await eventually(lambda: hook_server.got.qsize() >= CONCURRENCY, 180)
    job = await working_farm.submit_job(CHAT)
    assert (await working_farm.wait_for_status(job["id"]))["status"] == "succeeded"
    assert hook_server.answered == 0
    hook_server.open.set()
    await eventually(lambda: hook_server.answered >= len(waiting_jobs), 180)


@pytest.mark.parametrize("is_temporal_down", [False, True])
async def test_job_cancelled_before_its_start_calls_its_webhook(
    farm: Farm,
    receiver: tuple[ScriptedReceiver, str],
    is_temporal_down: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never_start(*_: object) -> None:
        return None

    async def raise_unavailable(*_: object) -> None:
        raise ServiceUnavailable("Temporal is away")

    hook_server, url = receiver
    with monkeypatch.context() as patch:
        patch.setattr(farm.launcher, "start", never_start)
        if is_temporal_down:
            patch.setattr(farm.launcher, "start_webhook", raise_unavailable)
        job = await farm.submit_job({**CHAT, "webhook": url})
        async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
            assert (await response.json())["status"] == "cancelled"
    await farm.start_worker()
    _, body = await asyncio.wait_for(hook_server.got.get(), 20)
    assert '"job.cancelled"' in body


async def test_host_name_with_private_address_is_not_called(
    farm: Farm, receiver: tuple[ScriptedReceiver, str]
) -> None:
    """The host name is accepted at submission, but its address is private, so the call fails."""
    farm.networks = ""
    await farm.start_worker()
    hook_server, url = receiver
    job = await farm.submit_job({**CHAT, "webhook": url.replace("127.0.0.1", "localhost")})
    assert (await farm.wait_for_status(job["id"]))["status"] == "succeeded"
    client = await farm.temporal.get_client()
    handle = client.get_workflow_handle(f"webhook-{job['id']}-1")
    # It is started just after the job's end.
    query = f"WorkflowId = '{handle.id}'"

    async def count_started() -> int:
        return (await client.count_workflows(query)).count

    await eventually(count_started)
    with pytest.raises(WorkflowFailureError) as exc_info:
        await asyncio.wait_for(handle.result(), 20)
    assert isinstance(exc_info.value.cause, ActivityError)
    assert "public addresses only" in str(exc_info.value.cause.cause)
    assert hook_server.got.empty()
