from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.client.errors import ERROR_TYPES, GatewayUnreachable, RequestRefused
from moyin.client.gateway import GatewayClient, ServerSentEvent
from moyin.domain.identity import Identity
from moyin.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    RateLimited,
    ServiceUnavailable,
    StepFailed,
)

ADA = Identity(owner="ada", key_id="k1")
JOB = {"kind": "chat", "request": {}}


class ScriptedGateway:
    """A test gateway that sends scripted responses and records the requests."""

    def __init__(self) -> None:
        self.status = 202
        self.body: Any = {"id": "j1", "status": "queued"}
        self.headers = {"location": "/jobs/j1"}
        self.streams: list[Any] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []

    async def respond(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((headers, await request.read()))
        return web.json_response(self.body, status=self.status, headers=self.headers)

    async def stream_events(self, request: web.Request) -> web.StreamResponse:
        """Send the next of `streams`, which is a list of events or the status of an error.

        A None in the list breaks the connection.
        """
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((headers, b""))
        stream = self.streams.pop(0)
        if isinstance(stream, int):
            code = "job_not_found" if stream == 404 else "service_unavailable"
            return web.json_response({"code": code, "detail": "no"}, status=stream)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in stream:
            if event is None:
                assert request.transport is not None
                request.transport.abort()
                break
            event_id, kind, data = event
            frame = f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
            await response.write(frame.encode())
        return response


@pytest.fixture
def gateway() -> ScriptedGateway:
    return ScriptedGateway()


@pytest.fixture
async def client(gateway: ScriptedGateway) -> AsyncIterator[GatewayClient]:
    app = web.Application()
    app.router.add_get("/jobs/j1/events", gateway.stream_events)
    app.router.add_route("*", "/{path:.*}", gateway.respond)
    async with (
        TestServer(app) as server,
        GatewayClient(
            str(server.make_url("/")),
            token_for=lambda identity: f"for-{identity.owner}",
            reconnect_seconds=0,
        ) as client,
    ):
        yield client


async def test_a_job_is_submitted_with_the_rights_of_its_identity(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    accepted_job = await client.submit_job(JOB, identity=ADA, idempotency_key="once")
    assert (accepted_job.location, accepted_job.replayed) == ("/jobs/j1", False)
    assert b'"j1"' in accepted_job.body
    ((headers, body),) = gateway.requests
    assert json.loads(body) == JOB
    assert headers["authorization"] == "Bearer for-ada"
    assert headers["idempotency-key"] == "once"


async def test_an_accepted_job_can_be_cancelled(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    accepted_job = await client.submit_job(JOB, identity=ADA)
    await client.cancel_job(accepted_job.location, identity=ADA)
    assert gateway.requests[-1][0]["authorization"] == "Bearer for-ada"
    gateway.status, gateway.body = 409, {"code": "job_finished", "detail": "it has ended"}
    with pytest.raises(JobFinished):
        await client.cancel_job(accepted_job.location, identity=ADA)


async def test_a_repeated_submission_is_marked_as_replayed(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    gateway.headers["idempotent-replayed"] = "true"
    assert (await client.submit_job(JOB, identity=ADA, idempotency_key="once")).replayed


@pytest.mark.parametrize(
    ("status", "problem", "error_type", "field"),
    [
        (400, {"code": "invalid_request", "detail": "no", "field": "x.y"}, InvalidRequest, "x.y"),
        (422, {"code": "idempotency_key_reused", "detail": "no"}, IdempotencyMismatch, None),
        (429, {"code": "rate_limit_exceeded", "detail": "no"}, RateLimited, None),
        (500, {"code": "of the future", "detail": "no"}, ServiceUnavailable, None),
        (502, {}, ServiceUnavailable, None),
        (200, {"id": "j1"}, ServiceUnavailable, None),
    ],
)
async def test_a_refused_job_raises_the_type_of_the_reported_code(
    gateway: ScriptedGateway,
    client: GatewayClient,
    status: int,
    problem: dict[str, str],
    error_type: type[Exception],
    field: str | None,
) -> None:
    gateway.status, gateway.body, gateway.headers = status, problem, {"retry-after": "7"}
    with pytest.raises(error_type) as exc_info:
        await client.submit_job(JOB, identity=ADA)
    assert getattr(exc_info.value, "field", None) == field
    assert getattr(exc_info.value, "retry_after", None) in (5, 7)


async def test_waiting_for_a_job_survives_broken_streams(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    ended_job = {"id": "j1", "status": "failed"}
    gateway.streams = [
        [("1-0", "queued", {"id": "j1", "status": "queued"}), ("2-0", "progress", {}), None],
        503,
        [("3-0", "step", {"step": 0}), ("4-0", "failed", ended_job)],
    ]
    assert await client.wait_for_job("j1", identity=ADA) == ended_job
    assert [headers.get("last-event-id") for headers, _ in gateway.requests] == [
        None,
        "2-0",
        "2-0",
    ]


async def test_waiting_for_an_unknown_job_ends_at_once(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    gateway.streams = [404]
    with pytest.raises(JobNotFound):
        await client.wait_for_job("j1", identity=ADA)


async def test_the_end_of_a_retried_attempt_is_not_the_end_of_the_job(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    first_events = [("1-0", "failed", {"status": "failed", "attempt": 1}), ("2-0", "queued", {})]
    ended_job = {"id": "j1", "status": "succeeded", "attempt": 2}
    gateway.streams = [first_events, [*first_events, ("3-0", "succeeded", ended_job)]]
    assert await client.wait_for_job("j1", identity=ADA) == ended_job


async def test_a_stream_that_breaks_after_the_final_event_is_complete(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    ended_job = {"id": "j1", "status": "succeeded"}
    # The gateway has no event after the final one.
    gateway.streams = [[("1-0", "succeeded", ended_job), None], []]
    assert await client.wait_for_job("j1", identity=ADA) == ended_job


async def test_following_a_job_gives_up_after_the_maximum_of_reconnects(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    gateway.streams = [[("1-0", "queued", {})], 503, []]
    with pytest.raises(GatewayUnreachable):
        async for _ in client.follow_job("j1", identity=ADA, max_reconnects=2):
            continue
    assert gateway.streams == []


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"code": "job_not_found", "detail": "no job"}, "job_not_found", "no job"),
        ({"error": {"code": "model_not_found", "message": "no"}}, "model_not_found", "no"),
        ({"error": {"type": "not_found_error", "message": "no"}}, "not_found_error", "no"),
        ({"error": "plain"}, None, "plain"),
        ({}, None, "the gateway answered with status 404"),
    ],
)
async def test_every_format_of_an_error_body_gives_its_code(
    gateway: ScriptedGateway, client: GatewayClient, body: Any, code: str | None, message: str
) -> None:
    gateway.status, gateway.body = 404, body
    with pytest.raises(RequestRefused) as exc_info:
        await client.call("GET", "/x")
    assert (exc_info.value.reported_code, exc_info.value.message) == (code, message)


async def test_a_refused_graph_names_its_nodes(
    gateway: ScriptedGateway, client: GatewayClient
) -> None:
    error = {"message": "Value not in list", "details": "color: -1"}
    gateway.status = 400
    gateway.body = {
        "code": "invalid_graph",
        "detail": "bad",
        "node_errors": {"3": {"errors": [error]}},
    }
    with pytest.raises(RequestRefused, match="bad; node 3: Value not in list color: -1"):
        await client.call("POST", "/jobs", {})


async def test_a_file_larger_than_the_limit_is_not_read(
    gateway: ScriptedGateway, client: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.client.gateway._LARGEST_FILE", 10)
    gateway.status, gateway.body = 200, "x" * 8
    assert await client.read("/artifacts/a", identity=ADA) == b'"xxxxxxxx"'
    gateway.body = "x" * 9
    with pytest.raises(StepFailed, match="larger than the limit of 10 bytes"):
        await client.read("/artifacts/a", identity=ADA)


async def test_an_absent_gateway_is_reported() -> None:
    async with GatewayClient("http://127.0.0.1:9", api_key="k") as client:
        with pytest.raises(GatewayUnreachable) as exc_info:
            await client.submit_job(JOB)
        assert exc_info.value.url == "http://127.0.0.1:9"


def test_an_event_joins_its_lines_and_separates_its_comment() -> None:
    event = ServerSentEvent(b'id: 7\nevent: progress\ndata: {"value":\ndata: 1}\n\n')
    assert (event.id, event.type, event.data) == ("7", "progress", {"value": 1})
    assert ServerSentEvent(b": x-moyin-cost-usd=0.1\n\n").comment == "x-moyin-cost-usd=0.1"
    assert ServerSentEvent(b"retry: 1000\n\n").text is None


@pytest.mark.parametrize("code", sorted(ERROR_TYPES))
def test_every_known_code_becomes_its_own_type(code: str) -> None:
    body = json.dumps({"code": code, "detail": "no", "field": "f"}).encode()
    error = RequestRefused(400, {"retry-after": "3"}, body).to_typed_error()
    assert (type(error), error.code) == (ERROR_TYPES[code], code)
    assert (error.message, error.field, error.retry_after) == ("no", "f", 3)


@pytest.mark.parametrize(
    "body",
    [
        b'{"node_errors": {"1": "bad"}}',
        b'{"node_errors": {"a": {"errors": null}}}',
        b'{"node_errors": {"a": {"errors": ["x"]}}}',
        b"[" * 100_000,
    ],
)
def test_a_refusal_with_an_unexpected_body_is_still_a_refusal(body: bytes) -> None:
    """The error keeps its status, whatever service behind the gateway has written the body."""
    error = RequestRefused(400, {}, body)
    assert (error.status, error.reported_code) == (400, None)


async def test_an_error_raised_inside_the_open_block_is_not_changed(
    client: GatewayClient,
) -> None:
    """An error of the `async with` block, such as BrokenPipeError, does not become a gateway error."""
    with pytest.raises(BrokenPipeError):
        async with client.open("GET", "/jobs"):
            raise BrokenPipeError
