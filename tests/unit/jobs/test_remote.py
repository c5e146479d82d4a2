from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.domain.identity import Identity
from moyin.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    RateLimited,
    ServiceUnavailable,
)
from moyin.jobs import remote as module
from moyin.jobs.remote import RemoteJobs

ADA = Identity(owner="ada", key_id="k1")
JOB = {"kind": "chat", "request": {}}


class Jobs:
    """A jobs API that answers as it is told."""

    def __init__(self) -> None:
        self.status = 202
        self.body: dict[str, Any] = {"id": "j1", "status": "queued"}
        self.headers = {"location": "/jobs/j1"}
        self.streams: list[Any] = []
        self.asked: list[tuple[dict[str, str], Any]] = []

    async def submit(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((headers, await request.json()))
        return web.json_response(self.body, status=self.status, headers=self.headers)

    async def cancel(self, request: web.Request) -> web.Response:
        self.asked.append((dict(request.headers), None))
        return web.json_response(self.body, status=self.status)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """One of the scripted streams for each call."""
        stream = self.streams.pop(0)
        if isinstance(stream, int):
            code = "job_not_found" if stream == 404 else "service_unavailable"
            return web.json_response({"code": code, "detail": "no"}, status=stream)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for kind, data in stream:
            await response.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())
        return response


@pytest.fixture
async def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
async def remote(jobs: Jobs) -> AsyncIterator[RemoteJobs]:
    app = web.Application()
    app.router.add_post("/jobs", jobs.submit)
    app.router.add_post("/jobs/j1/cancel", jobs.cancel)
    app.router.add_get("/jobs/j1/events", jobs.events)
    async with TestServer(app) as server:
        remote = RemoteJobs(str(server.make_url("/")), lambda identity: f"for-{identity.owner}")
        yield remote
        await remote.close()


async def test_a_job_is_submitted_for_whom_it_is(jobs: Jobs, remote: RemoteJobs) -> None:
    accepted = await remote.submit(ADA, JOB, idempotency_key="once")
    assert (accepted.location, accepted.replayed) == ("/jobs/j1", False)
    assert b'"j1"' in accepted.body
    ((headers, body),) = jobs.asked
    assert body == JOB
    assert headers["authorization"] == "Bearer for-ada"
    assert headers["idempotency-key"] == "once"


async def test_a_job_that_was_accepted_can_be_cancelled(jobs: Jobs, remote: RemoteJobs) -> None:
    accepted = await remote.submit(ADA, JOB, idempotency_key=None)
    await remote.cancel(ADA, accepted.location)
    assert jobs.asked[-1][0]["Authorization"] == "Bearer for-ada"
    jobs.status, jobs.body = 409, {"code": "job_finished", "detail": "it has ended"}
    with pytest.raises(JobFinished):
        await remote.cancel(ADA, accepted.location)


async def test_a_repeat_is_told(jobs: Jobs, remote: RemoteJobs) -> None:
    jobs.headers["idempotent-replayed"] = "true"
    assert (await remote.submit(ADA, JOB, idempotency_key="once")).replayed


@pytest.mark.parametrize(
    ("status", "problem", "kind", "field"),
    [
        (
            400,
            {"code": "invalid_request", "detail": "no", "field": "request.messages"},
            InvalidRequest,
            "messages",
        ),
        (422, {"code": "idempotency_key_reused", "detail": "no"}, IdempotencyMismatch, None),
        (429, {"code": "rate_limit_exceeded", "detail": "no"}, RateLimited, None),
        (500, {"code": "of the future", "detail": "no"}, ServiceUnavailable, None),
        (502, {}, ServiceUnavailable, None),
    ],
)
async def test_a_refusal_is_raised_in_its_own_type(
    jobs: Jobs,
    remote: RemoteJobs,
    status: int,
    problem: dict[str, str],
    kind: type[Exception],
    field: str | None,
) -> None:
    jobs.status, jobs.body, jobs.headers = status, problem, {"retry-after": "7"}
    with pytest.raises(kind) as caught:
        await remote.submit(ADA, JOB, idempotency_key=None)
    assert getattr(caught.value, "field", None) == field
    assert getattr(caught.value, "retry_after", None) in (5, 7)


async def test_a_job_is_followed_to_its_end_whatever_breaks(
    jobs: Jobs, remote: RemoteJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0)
    ended = {"id": "j1", "status": "failed"}
    jobs.streams = [
        [("queued", {"id": "j1", "status": "queued"}), ("progress", {"value": 1})],
        503,
        [("step", {"step": 0}), ("failed", ended)],
    ]
    assert await remote.ended(ADA, "j1") == ended
    jobs.streams = [404]
    with pytest.raises(JobNotFound):
        await remote.ended(ADA, "j1")


async def test_the_end_of_an_attempt_that_was_retried_is_not_the_job_s(
    jobs: Jobs, remote: RemoteJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0)
    first = [("failed", {"id": "j1", "status": "failed", "attempt": 1}), ("queued", {"id": "j1"})]
    ended = {"id": "j1", "status": "succeeded", "attempt": 2}
    jobs.streams = [first, [*first, ("succeeded", ended)]]
    assert await remote.ended(ADA, "j1") == ended


async def test_nobody_there_is_said_in_time() -> None:
    remote = RemoteJobs("http://127.0.0.1:9", lambda identity: "")
    with pytest.raises(ServiceUnavailable):
        await remote.submit(ADA, JOB, idempotency_key=None)
    await remote.close()
