"""Tests interrupted streams of Claude over a real socket, because its SDK translates the errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anthropic
import httpx2
import pytest

from moyin.errors import BackendError, BackendTimeout, BackendUnavailable
from moyin.testing.backends import FakeBackend
from moyin.text.backends.anthropic import AnthropicBackend, _translate_errors
from moyin.text.backends.http import Endpoint
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from tests.integration.text.upstreams import BEGUN, Upstream
from tests.unit.text.routing.router_rig import CHUNK, DONE, Rig, read_stream

# It promises more than comes.
CUT = BEGUN["anthropic"].replace("connection: close", "content-length: 9999")
HEAD = CUT.partition("\r\n\r\n")[0] + "\r\n\r\n"
ERROR = 'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'


@asynccontextmanager
async def run_claude(response: str) -> AsyncIterator[FakeBackend]:
    async with Upstream(response).running() as upstream:
        backend = AnthropicBackend(Endpoint(url=upstream.url, key="k"), max_connections=4)
        yield cast(FakeBackend, backend)
        await backend.close()


async def test_interrupted_stream_ends_with_error_and_partial_charge() -> None:
    async with run_claude(CUT) as backend:
        rig = Rig(backend)
        for _ in range(3):
            stream_bytes = await read_stream(await rig.ask(OpenAICodec(), stream=True))
            assert b'"content":"Hi"' in stream_bytes
            assert b'"code":"stream_interrupted"' in stream_bytes
        assert [(entry.complete, entry.output_tokens) for entry in rig.ledger] == [(False, 1)] * 3
        assert {call.error for call in rig.telemetry.calls} == {"stream_interrupted"}
        assert not rig.runtimes[0].is_ready, "the breaker counts it"


async def test_interruption_is_reported_in_every_protocol() -> None:
    async with run_claude(CUT) as backend:
        stream_bytes = await read_stream(
            await Rig(backend).ask(OllamaChatCodec(), max_tokens=None, stream=True)
        )
        assert b'"code":"stream_interrupted"' in stream_bytes


@pytest.mark.parametrize(
    "raw_response",
    [
        HEAD,
        HEAD + ERROR,
        # The body of an error, which the SDK reads outside of what it sorts.
        "HTTP/1.1 500 No\r\ncontent-length: 99\r\n\r\n{",
    ],
    ids=["cut", "error", "cut error"],
)
async def test_failure_before_first_delta_falls_back(raw_response: str) -> None:
    async with run_claude(raw_response) as backend:
        rig = Rig(backend, FakeBackend(raw_stream=[CHUNK, DONE]))
        for _ in range(3):
            response = await rig.ask(OpenAICodec(), stream=True)
            await read_stream(response)
            route = dict(response.headers)[b"x-moyin-route"]
            assert route == b"fallback after backend_unavailable"
        assert not rig.runtimes[0].is_ready, "the breaker counts it"
        with pytest.raises(BackendUnavailable):
            await Rig(backend).ask(OpenAICodec(), stream=True)


async def test_interrupted_whole_response_raises_backend_unavailable() -> None:
    async with run_claude("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{") as backend:
        for codec in (OpenAICodec(), AnthropicCodec()):
            with pytest.raises(BackendUnavailable):
                await Rig(backend).ask(codec)


@pytest.mark.parametrize(
    ("cause", "error_class", "may_be_billed"),
    [
        (httpx2.ConnectTimeout("x"), BackendUnavailable, False),
        (httpx2.PoolTimeout("x"), BackendUnavailable, False),
        (httpx2.ReadTimeout("x"), BackendTimeout, True),
    ],
)
def test_call_that_did_not_reach_the_server_is_not_billed(
    cause: Exception, error_class: type[BackendError], may_be_billed: bool
) -> None:
    request = httpx2.Request("POST", "https://claude.example/v1/messages")
    with pytest.raises(error_class) as exc_info, _translate_errors():
        raise anthropic.APITimeoutError(cast(Any, request)) from cause
    assert exc_info.value.may_be_billed is may_be_billed
