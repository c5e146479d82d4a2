from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic_core import to_json

from moyin.domain.identity import Identity
from moyin.errors import BackendUnavailable, InvalidRequest, StepFailed
from moyin.jobs import gateway_client as door_module
from moyin.jobs.gateway_client import DoorClient


class Behind:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer = web.Response()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k.lower(): v for k, v in request.headers.items()}
        self.seen.append((request.method, request.raw_path, headers, body))
        return self.answer


ANN = Identity(owner="ann", key_id="k")


@pytest.fixture
async def behind() -> AsyncIterator[tuple[Behind, DoorClient]]:
    behind = Behind()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", behind.handle)
    async with (
        TestServer(app) as server,
        DoorClient(str(server.make_url("/")), lambda who: f"token-of-{who.owner}") as client,
    ):
        yield behind, client


async def call(client: DoorClient, path: str = "/x", **options: Any) -> Any:
    return await client.call(ANN, "POST", path, idempotency_key="k", **options)


async def test_it_speaks_for_the_owner_and_nobody_else(behind: tuple[Behind, DoorClient]) -> None:
    service, client = behind
    sneaky = {"Authorization": "Bearer other", "X-API-Key": "k", "Host": "evil", "X-Mine": "1",
              "x-request-timeout-seconds": "0"}  # fmt: skip
    await call(client, body={"a": 1}, headers=sneaky)
    ((method, _, headers, body),) = service.seen
    assert (method, body) == ("POST", b'{"a": 1}')
    assert headers["authorization"] == "Bearer token-of-ann"
    assert headers["host"].startswith("127.0.0.1")
    assert (headers["x-mine"], headers["idempotency-key"]) == ("1", "k")
    assert headers["content-type"] == "application/json"
    assert not {"x-api-key", "x-request-timeout-seconds"} & headers.keys()


async def test_the_path_is_sent_as_it_was_checked(behind: tuple[Behind, DoorClient]) -> None:
    service, client = behind
    await call(client, "/a%20b?c=%2F..%2F")
    assert service.seen[0][1] == "/a%20b?c=%2F..%2F"
    with pytest.raises(InvalidRequest):
        await call(client, "/../jobs")
    assert len(service.seen) == 1


async def test_an_answer_tells_cost_and_back_end(behind: tuple[Behind, DoorClient]) -> None:
    service, client = behind
    service.answer = web.json_response(
        {"a": 1}, headers={"x-moyin-cost-usd": "0.000012", "x-moyin-backend": "local"}
    )
    answer = await call(client, body="text")
    assert (answer.cost_usd, answer.backend) == (Decimal("0.000012"), "local")
    assert answer.json() == {"a": 1}
    assert service.seen[0][2]["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("cost", ["nonsense", "NaN", "-1", "Infinity", ""])
async def test_a_senseless_cost_is_none(behind: tuple[Behind, DoorClient], cost: str) -> None:
    service, client = behind
    service.answer = web.Response(headers={"x-moyin-cost-usd": cost})
    assert (await call(client)).cost_usd == 0


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 501])
async def test_refusals_are_final(behind: tuple[Behind, DoorClient], status: int) -> None:
    service, client = behind
    service.answer = web.Response(status=status, text="because")
    with pytest.raises(StepFailed) as failed:
        await call(client, "/x?token=secret")
    assert failed.value.details == {"status": status, "answer": "because"}
    assert "secret" not in failed.value.message


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_failures_are_tried_again(behind: tuple[Behind, DoorClient], status: int) -> None:
    service, client = behind
    service.answer = web.Response(status=status, headers={"retry-after": "7"})
    with pytest.raises(BackendUnavailable) as failed:
        await call(client)
    assert failed.value.retry_after == 7


async def test_redirects_are_not_followed(behind: tuple[Behind, DoorClient]) -> None:
    service, client = behind
    service.answer = web.Response(status=302, headers={"location": "/jobs"})
    assert (await call(client)).status == 302
    assert len(service.seen) == 1


async def test_an_endless_answer_is_cut(
    behind: tuple[Behind, DoorClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = behind
    monkeypatch.setattr(door_module, "_MAX_ANSWER_BYTES", 1000)
    service.answer = web.Response(body=b"x" * 1001)
    with pytest.raises(StepFailed):
        await call(client)


async def test_an_answer_is_asked_for_in_an_encoding_that_we_read(
    behind: tuple[Behind, DoorClient],
) -> None:
    service, client = behind
    await call(client, body=b"x", headers={"Accept-Encoding": "x-none", "Expect": "100-continue"})
    ((_, _, headers, _),) = service.seen
    assert "gzip" in headers["accept-encoding"]
    assert "expect" not in headers


@pytest.mark.parametrize("value", ["one\ntwo", "a\r", "\0"])
async def test_what_no_header_can_hold_is_refused_once(
    behind: tuple[Behind, DoorClient], value: str
) -> None:
    service, client = behind
    with pytest.raises(StepFailed, match="x-mine"):
        await call(client, headers={"x-mine": value})
    assert service.seen == []


async def test_half_a_character_does_not_cost_the_answer(
    behind: tuple[Behind, DoorClient],
) -> None:
    service, client = behind
    service.answer = web.Response(body=b'{"a": "x\\ud83d", "b": [1.5, null, "\\u00fc"]}')
    body = (await call(client)).json()
    assert body == {"a": "x?", "b": [1.5, None, "ü"]}
    assert to_json(body)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[" * 500 + b"]" * 500, b"{", b"\xff"])
async def test_what_no_output_can_hold_is_no_json(
    behind: tuple[Behind, DoorClient], content: bytes
) -> None:
    service, client = behind
    service.answer = web.Response(body=content)
    answer = await call(client)
    with pytest.raises(StepFailed):
        answer.json()


async def test_nobody_there() -> None:
    async with DoorClient("http://127.0.0.1:9", lambda _: "t") as client:
        with pytest.raises(BackendUnavailable):
            await call(client)
