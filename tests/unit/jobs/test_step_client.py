from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic_core import to_json

from moyin.client.gateway import GatewayClient
from moyin.domain.identity import Identity
from moyin.errors import BackendUnavailable, InvalidRequest, StepFailed
from moyin.jobs.step_client import StepClient, StepResponse


class FakeService:
    """A fake service that gives one response to every request and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.response = web.Response()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k.lower(): v for k, v in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, body))
        return self.response


ANN = Identity(owner="ann", key_id="k")


@pytest.fixture
async def service_and_client() -> AsyncIterator[tuple[FakeService, StepClient]]:
    service = FakeService()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.handle)
    async with (
        TestServer(app) as server,
        GatewayClient(
            str(server.make_url("/")), token_for=lambda identity: f"token-of-{identity.owner}"
        ) as gateway,
    ):
        yield service, StepClient(gateway, max_response_bytes=1_000)


async def call_service(client: StepClient, path: str = "/x", **options: Any) -> StepResponse:
    return await client.call(ANN, "POST", path, idempotency_key="k", **options)


async def test_a_call_has_only_the_rights_of_the_owner(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    forged_headers = {"Authorization": "Bearer other", "X-API-Key": "k", "Host": "evil", "X-Mine": "1",
              "x-request-timeout-seconds": "0"}  # fmt: skip
    await call_service(client, body={"a": 1}, headers=forged_headers)
    ((method, _, headers, body),) = service.requests
    assert (method, body) == ("POST", b'{"a": 1}')
    assert headers["authorization"] == "Bearer token-of-ann"
    assert headers["host"].startswith("127.0.0.1")
    assert (headers["x-mine"], headers["idempotency-key"]) == ("1", "k")
    assert headers["content-type"] == "application/json"
    assert not {"x-api-key", "x-request-timeout-seconds"} & headers.keys()


async def test_a_path_is_sent_exactly_as_it_was_checked(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    await call_service(client, "/a%20b?c=%2F..%2F")
    assert service.requests[0][1] == "/a%20b?c=%2F..%2F"
    with pytest.raises(InvalidRequest):
        await call_service(client, "/../jobs")
    assert len(service.requests) == 1


async def test_a_response_has_its_cost_and_back_end(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    service.response = web.json_response(
        {"a": 1}, headers={"x-moyin-cost-usd": "0.000012", "x-moyin-backend": "local"}
    )
    response = await call_service(client, body="text")
    assert (response.cost_usd, response.backend) == (Decimal("0.000012"), "local")
    assert response.json() == {"a": 1}
    assert service.requests[0][2]["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("cost", ["nonsense", "NaN", "-1", "Infinity", ""])
async def test_a_malformed_cost_counts_as_zero(
    service_and_client: tuple[FakeService, StepClient], cost: str
) -> None:
    service, client = service_and_client
    service.response = web.Response(headers={"x-moyin-cost-usd": cost})
    assert (await call_service(client)).cost_usd == 0


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 501])
async def test_refused_calls_are_not_retryable(
    service_and_client: tuple[FakeService, StepClient], status: int
) -> None:
    service, client = service_and_client
    service.response = web.Response(status=status, text="because")
    with pytest.raises(StepFailed) as exc_info:
        await call_service(client, "/x?token=secret")
    assert exc_info.value.details == {"status": status, "answer": "because"}
    assert "secret" not in exc_info.value.message


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_failed_calls_are_retryable(
    service_and_client: tuple[FakeService, StepClient], status: int
) -> None:
    service, client = service_and_client
    service.response = web.Response(status=status, headers={"retry-after": "7"})
    with pytest.raises(BackendUnavailable) as exc_info:
        await call_service(client)
    assert exc_info.value.retry_after == 7


async def test_redirects_are_not_followed(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    service.response = web.Response(status=302, headers={"location": "/jobs"})
    assert (await call_service(client)).status == 302
    assert len(service.requests) == 1


async def test_a_response_larger_than_the_limit_fails_the_step(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    service.response = web.Response(body=b"x" * 1001)
    with pytest.raises(StepFailed, match="larger than the 1000 bytes"):
        await call_service(client)


async def test_a_call_accepts_only_encodings_that_the_client_can_read(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    await call_service(
        client, body=b"x", headers={"Accept-Encoding": "x-none", "Expect": "100-continue"}
    )
    ((_, _, headers, _),) = service.requests
    assert "gzip" in headers["accept-encoding"]
    assert "expect" not in headers


@pytest.mark.parametrize("header_value", ["one\ntwo", "a\r", "\0"])
async def test_a_header_with_control_characters_fails_the_step(
    service_and_client: tuple[FakeService, StepClient], header_value: str
) -> None:
    service, client = service_and_client
    with pytest.raises(StepFailed, match="x-mine"):
        await call_service(client, headers={"x-mine": header_value})
    assert service.requests == []


async def test_half_a_surrogate_pair_becomes_a_question_mark(
    service_and_client: tuple[FakeService, StepClient],
) -> None:
    service, client = service_and_client
    service.response = web.Response(body=b'{"a": "x\\ud83d", "b": [1.5, null, "\\u00fc"]}')
    body = (await call_service(client)).json()
    assert body == {"a": "x?", "b": [1.5, None, "ü"]}
    assert to_json(body)


@pytest.mark.parametrize("content", [b"[" * 1_000, b"[" * 500 + b"]" * 500, b"{", b"\xff"])
async def test_content_that_an_output_cannot_store_is_not_json(
    service_and_client: tuple[FakeService, StepClient], content: bytes
) -> None:
    service, client = service_and_client
    service.response = web.Response(body=content)
    response = await call_service(client)
    with pytest.raises(StepFailed):
        response.json()


async def test_an_unreachable_gateway_is_retryable() -> None:
    async with GatewayClient("http://127.0.0.1:9", token_for=lambda _: "t") as gateway:
        with pytest.raises(
            BackendUnavailable, match="POST /x failed, because the gateway could not be reached"
        ):
            await call_service(StepClient(gateway))
