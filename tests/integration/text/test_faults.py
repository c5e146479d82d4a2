"""Tests faults of every kind of back end over real sockets, in every protocol.

The client gets an answer, or a well-formed error in its own protocol. Metrics report the states of
the breakers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from moyin.http.breaker import BreakerState
from tests.integration.text.fixtures import (
    ModelsApp,
    build_local_backend,
    serving,
    wait_until_probed,
)
from tests.integration.text.upstreams import BEGUN, FINE, KINDS, SSE, Upstream, build_backend_config
from tests.stack import RecordMeasurement
from tests.waiting import eventually

PATHS = ["chat/completions", "messages", "ollama/api/chat"]
NOWHERE = "http://127.0.0.1:9"
# How a body's end is known; who promises more than comes was cut.
ENDS, PROMISES = "connection: close", "content-length: 9999"


@asynccontextmanager
async def serving_faulty_backends(
    folder: Path, upstreams: dict[str, Upstream], **kwargs: Any
) -> AsyncIterator[ModelsApp]:
    """Run the models app with a faulty back end of each kind, and one that works.

    The alias ``<kind>-or-fine`` tries the faulty back end first, and then the working one.
    """
    async with AsyncExitStack() as stack:
        fine_upstream = await stack.enter_async_context(Upstream(FINE).running())
        backends = []
        for kind, upstream in upstreams.items():
            url = (await stack.enter_async_context(upstream.running())).url
            backends.append(build_backend_config(kind, url, **kwargs))
        spare_backend = build_backend_config("openai", fine_upstream.url) | {"name": "fine"}
        spare_backend["models"] = [
            {"name": "fine", "context": 8000, "price": {"input": 50, "output": 50}}
        ]
        aliases: dict[str, Any] = {f"{kind}-or-fine": [f"m-{kind}", "fine"] for kind in upstreams}
        yield await stack.enter_async_context(serving(folder, *backends, spare_backend, **aliases))


async def send_chat(
    models_app: ModelsApp, path: str, model: str, *, stream: bool = False, **headers: str
) -> tuple[aiohttp.ClientResponse, str]:
    headers = {"authorization": f"Bearer {models_app.api_key}", **headers}
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "max_tokens": 5, "messages": messages, "stream": stream}
    if path.startswith("ollama"):
        del body["max_tokens"]
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{models_app.url}/v1/{path}", json=body) as response,
    ):
        return response, await response.text()


def read_error_code(path: str, text: str) -> str:
    """Return the code of a well-formed error in the protocol of ``path``."""
    body = json.loads(text)
    if path.startswith("ollama"):
        assert isinstance(body["error"], str)
        return str(body["code"])
    error = body["error"]
    assert error["message"] and error["type"]
    if path == "messages":
        assert body["type"] == "error"
    return str(error["code"])


class ManualClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def close_breaker(models_app: ModelsApp, kind: str) -> None:
    """Close the breaker of the back end ``kind``, so that each test begins in the same state."""
    models_app.text_router.fleet.runtimes[kind].breaker.succeed()


@pytest.mark.parametrize(
    ("raw_response", "status", "code"),
    [
        ("HTTP/1.1 500 No\r\ncontent-length: 6\r\n\r\nsecret", 502, "backend_unavailable"),
        ("HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}", 429, "overloaded"),
        ("HTTP/1.1 401 No\r\ncontent-length: 6\r\n\r\nsecret", 503, "service_unavailable"),
        (
            'HTTP/1.1 400 No\r\ncontent-length: 31\r\n\r\n{"error":{"message":"too odd"}}',
            400,
            "backend_rejected",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", 502, None),
        ("", 502, "backend_unavailable"),
        (SSE.replace(ENDS, PROMISES), 502, None),
        ("HTTP/1.1 500 No\r\ncontent-length: 9999\r\n\r\nsecret", 502, "backend_unavailable"),
    ],
    ids=["500", "429", "401", "400", "malformed", "cut", "cut body", "cut error"],
)
async def test_faults_before_the_first_byte_become_errors_or_fallbacks(
    tmp_path: Path, raw_response: str, status: int, code: str | None
) -> None:
    async with serving_faulty_backends(
        tmp_path, {kind: Upstream(raw_response) for kind in KINDS}
    ) as models_app:
        for kind, path, stream in product(KINDS, PATHS, [False, True]):
            close_breaker(models_app, kind)
            cell = f"{path} to {kind}, stream={stream}"
            response, response_text = await send_chat(models_app, path, f"m-{kind}", stream=stream)
            assert response.status == status, (cell, response_text)
            assert "secret" not in response_text, cell
            assert code in (None, read_error_code(path, response_text)), cell
            if code == "overloaded" and (kind != "ollama" or path.startswith("ollama")):
                assert response.headers["retry-after"] == "7", cell
            # Another one answers instead, unless the request is at fault.
            close_breaker(models_app, kind)
            response, response_text = await send_chat(models_app, path, f"{kind}-or-fine")
            assert response.status == (400 if status == 400 else 200), (cell, response_text)
            if response.status == 200:
                assert "Hi" in response_text, cell
                assert response.headers["x-moyin-backend"] == "fine", cell
                assert response.headers["x-moyin-route"].startswith("fallback after "), cell


@pytest.mark.parametrize(
    ("length_header", "stream_rest"),
    [(ENDS, ""), (PROMISES, ""), (ENDS, "data: {nope}\n\n")],
    ids=["ended", "cut", "malformed"],
)
async def test_faults_after_the_first_byte_end_the_stream_with_an_error(
    tmp_path: Path, length_header: str, stream_rest: str
) -> None:
    upstreams = {
        kind: Upstream(BEGUN[kind].replace(ENDS, length_header), stream_rest) for kind in KINDS
    }
    async with serving_faulty_backends(tmp_path, upstreams) as models_app:
        for kind, path in product(KINDS, PATHS):
            close_breaker(models_app, kind)
            cell = f"{path} to {kind}"
            response, response_text = await send_chat(
                models_app, path, f"{kind}-or-fine", stream=True
            )
            assert response.status == 200, cell
            assert "Hi" in response_text, cell
            if path.startswith("ollama"):
                error_event = response_text.rstrip().splitlines()[-1]
            else:
                *_, error_event, cost_comment, _ = response_text.split("\n\n")
                assert cost_comment.startswith(": x-moyin-cost-usd=0.0000"), cell
                assert path != "messages" or error_event.startswith("event: error\ndata: "), cell
            assert (
                read_error_code(path, error_event.rpartition("data: ")[2]) == "stream_interrupted"
            ), cell
            assert models_app.telemetry.calls[-1].error == "stream_interrupted", cell


async def test_call_of_a_silent_server_ends_at_the_deadline(tmp_path: Path) -> None:
    upstreams = {kind: Upstream(None) for kind in KINDS}
    async with (
        serving_faulty_backends(tmp_path, upstreams, timeout_s=0.2) as models_app,
        asyncio.timeout(30),
    ):
        for kind, path, stream in product(KINDS, PATHS, [False, True]):
            close_breaker(models_app, kind)
            response, text = await send_chat(models_app, path, f"m-{kind}", stream=stream)
            assert response.status == 504, (kind, path, text)
            assert read_error_code(path, text) == "backend_timeout"


async def test_a_stream_that_begins_late_is_retried_on_another_back_end(tmp_path: Path) -> None:
    upstreams = {kind: Upstream(None) for kind in KINDS}
    async with (
        serving_faulty_backends(tmp_path, upstreams, first_byte_s=0.1) as models_app,
        asyncio.timeout(30),
    ):
        for kind, path in product(KINDS, PATHS):
            close_breaker(models_app, kind)
            response, text = await send_chat(models_app, path, f"m-{kind}", stream=True)
            assert (response.status, read_error_code(path, text)) == (504, "backend_timeout"), (
                kind,
                path,
            )


async def test_the_clients_deadline_holds_for_the_whole_call(tmp_path: Path) -> None:
    upstreams = {kind: Upstream(None) for kind in KINDS}
    async with serving_faulty_backends(tmp_path, upstreams) as models_app, asyncio.timeout(30):
        for kind, path in product(KINDS, PATHS):
            close_breaker(models_app, kind)
            headers: dict[str, Any] = {"x-moyin-timeout": "0.2"}
            response, text = await send_chat(models_app, path, f"{kind}-or-fine", **headers)
            assert response.status == 504, (kind, path, text)


async def test_unreachable_backends_are_unavailable(tmp_path: Path) -> None:
    backends = [build_backend_config(kind, NOWHERE) for kind in KINDS]
    async with serving(tmp_path, *backends) as models_app:
        for kind, path, stream in product(KINDS, PATHS, [False, True]):
            close_breaker(models_app, kind)
            response, text = await send_chat(models_app, path, f"m-{kind}", stream=stream)
            assert response.status in (502, 503), (kind, path)
            assert read_error_code(path, text) in ("backend_unavailable", "service_unavailable")


async def test_breaker_states_are_reported(tmp_path: Path) -> None:
    error_response = "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
    upstreams = {kind: Upstream(error_response) for kind in KINDS}
    closed_state, breaker_states = BreakerState.CLOSED, BreakerState
    async with serving_faulty_backends(tmp_path, upstreams) as models_app:
        for kind, upstream in upstreams.items():
            states, clock = models_app.telemetry.states[kind], ManualClock()
            models_app.text_router.fleet.runtimes[kind].breaker._clock = clock
            for _ in range(3):
                await send_chat(models_app, "messages", f"m-{kind}")
            assert states == [closed_state, breaker_states.OPEN]
            # Open: nobody is asked, and the client hears when to come back.
            for path in PATHS:
                response, text = await send_chat(models_app, path, f"m-{kind}")
                assert (response.status, read_error_code(path, text)) == (
                    503,
                    "service_unavailable",
                )
                assert int(response.headers["retry-after"]) >= 1
            assert upstream.request_count == 3
            clock.now += 2
            await send_chat(models_app, "messages", f"m-{kind}")
            assert states == [
                closed_state,
                breaker_states.OPEN,
                breaker_states.HALF_OPEN,
                breaker_states.OPEN,
            ]
            assert upstream.request_count == 4
            models_app.text_router.fleet.runtimes[kind].breaker.succeed()
            assert states[-1] is breaker_states.CLOSED


@pytest.mark.parametrize(
    ("raw_response", "seconds"),
    [
        ("HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}", 7),
        ("HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\n{}", 60),
        ("HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\n{}", 60),
    ],
    ids=["429", "401", "403"],
)
async def test_some_faults_open_the_breaker_at_once(
    tmp_path: Path, raw_response: str, seconds: int
) -> None:
    upstreams = {kind: Upstream(raw_response) for kind in KINDS}
    async with serving_faulty_backends(tmp_path, upstreams) as models_app:
        for kind, upstream in upstreams.items():
            # Ollama's own format carries the header through; its SDK does not show it.
            await send_chat(models_app, "ollama/api/chat", f"m-{kind}")
            assert models_app.telemetry.states[kind][-1] is BreakerState.OPEN, kind
            response, _ = await send_chat(models_app, "messages", f"m-{kind}")
            assert seconds - 3 <= int(response.headers["retry-after"]) <= seconds, kind
            assert upstream.request_count == 1, kind


async def test_a_disconnect_stops_the_upstream_call_and_is_charged(
    tmp_path: Path, record_measurement: RecordMeasurement
) -> None:
    upstreams = {kind: Upstream(BEGUN[kind], holds=True) for kind in KINDS}
    longest_seconds = 0.0
    async with serving_faulty_backends(tmp_path, upstreams) as models_app:
        for kind, path in product(KINDS, PATHS):
            upstream = upstreams[kind]
            upstream.left.clear()
            request_id = f"{kind}-{PATHS.index(path)}"
            headers = {"authorization": f"Bearer {models_app.api_key}", "x-request-id": request_id}
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": f"m-{kind}", "max_tokens": 5, "messages": messages, "stream": True}
            if path.startswith("ollama"):
                del body["max_tokens"]
            async with aiohttp.ClientSession(headers=headers) as http:
                response = await http.post(f"{models_app.url}/v1/{path}", json=body)
                assert b"Hi" in await response.content.readany(), (kind, path)
                response.close()
                left_at = time.monotonic()
                async with asyncio.timeout(5):
                    await upstream.left.wait()
            longest_seconds = max(longest_seconds, time.monotonic() - left_at)
            ledger_entry = await wait_for_ledger_entry(models_app, request_id)
            assert (ledger_entry.complete, ledger_entry.output_tokens) == (False, 1), (kind, path)
            assert ledger_entry.cost_usd > 0
    record_measurement(f"upstream was cut {longest_seconds:.2f} s after its client left, at most")


async def test_suspended_server_gets_no_calls(llama: str, tmp_path: Path) -> None:
    """A suspended server counts as unavailable, although the kernel accepts connections for it."""
    port = int(llama.rpartition(":")[2])
    [process] = [
        psutil.Process(connection.pid)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
    ]
    async with serving(tmp_path, build_local_backend(llama)) as models_app:
        await wait_until_probed(models_app)
        runtime = models_app.text_router.fleet.runtimes["local"]
        process.suspend()
        try:
            await eventually(lambda: runtime.is_up is False)
            response, _ = await send_chat(models_app, "chat/completions", "smollm2")
            assert response.status == 503 and runtime.load == 0
        finally:
            process.resume()
        await eventually(lambda: runtime.is_up is True)
        response, _ = await send_chat(models_app, "chat/completions", "smollm2")
        assert response.status == 200


async def test_health_checks_cost_nothing(tmp_path: Path) -> None:
    upstreams = {kind: Upstream(FINE) for kind in KINDS}
    async with serving_faulty_backends(tmp_path, upstreams) as models_app, asyncio.timeout(10):
        while None in (runtime.is_up for runtime in models_app.text_router.fleet.runtimes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert [upstream.request_count for upstream in upstreams.values()] == [0, 0, 0]


async def wait_for_ledger_entry(models_app: ModelsApp, request_id: str) -> Any:
    return await eventually(lambda: models_app.ledger.get("ada", request_id))


@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"model":"m-openai","max_tokens":5}', 400, "invalid_request", "messages"),
        (
            b'{"model":"m-openai","max_tokens":5,"messages":[{"role":"user","content":7}]}',
            400,
            "invalid_request",
            "messages.0.content",
        ),
        (
            b'{"model":"gpt-2","max_tokens":5,"messages":[{"role":"user","content":"x"}]}',
            404,
            "model_not_found",
            "model",
        ),
    ],
)
async def test_invalid_input_is_refused(
    tmp_path: Path, path: str, body: bytes, status: int, code: str, field: str | None
) -> None:
    async with (
        serving(tmp_path, build_backend_config("openai", NOWHERE)) as models_app,
        aiohttp.ClientSession() as http,
    ):
        url = f"{models_app.url}/v1/{path}"
        headers = {"x-api-key": models_app.api_key}
        async with http.post(url, data=body, headers=headers) as response:
            response_body = await response.json()
            assert response.status == status
            assert response_body["request_id"] == response.headers["x-request-id"]
        async with http.post(url, data=body) as response:
            assert response.status == 401
    error = response_body["error"]
    assert error["code"] == code
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert error.get("field" if path == "messages" else "param") == field
    assert (response_body.get("type") == "error") == (path == "messages")
