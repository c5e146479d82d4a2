"""Tests the Ollama back end through the real SDK; see `OllamaBridge` for the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.testing.ollama_bridge import OllamaBridge
from tests.integration.text.fixtures import LLAMA_KEY, ModelsApp, serving
from tests.stack import RecordMeasurement

HELLO = {"role": "user", "content": "Say hello."}
SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
async def bridge(llama: str) -> AsyncIterator[OllamaBridge]:
    async with OllamaBridge(f"{llama}/v1", LLAMA_KEY).running() as bridge:
        yield bridge


@pytest.fixture
async def models_app(bridge: OllamaBridge, tmp_path: Path) -> AsyncIterator[ModelsApp]:
    model = {"name": "smol", "upstream": "smollm2", "context": 8192, "tools": True}
    hosts = ["http://127.0.0.1:9", bridge.url]
    backend = {"name": "gpu", "type": "ollama", "hosts": hosts, "models": [model]}
    async with serving(tmp_path, backend) as models_app:
        yield models_app


@pytest.fixture
async def http(models_app: ModelsApp) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    async with aiohttp.ClientSession(models_app.url, headers=headers) as session:
        yield session


async def send_request(
    http: aiohttp.ClientSession, path: str, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    body = {"model": "smol", "messages": [HELLO], "max_tokens": 5, **kwargs}
    async with http.post(f"/v1/{path}", json=body) as response:
        return response, await response.json()


async def test_calls_fall_back_from_a_dead_host(http: aiohttp.ClientSession) -> None:
    response, body = await send_request(http, "chat/completions")
    assert response.headers["x-moyin-backend"] == "gpu-1"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "stream_end"), [("chat/completions", "data: [DONE]"), ("messages", '"message_stop"}')]
)
async def test_streams_end_as_their_protocol_requires(
    http: aiohttp.ClientSession, path: str, stream_end: str
) -> None:
    body = {"model": "smol", "messages": [HELLO], "max_tokens": 5, "stream": True}
    async with http.post(f"/v1/{path}", json=body) as response:
        text = await response.text()
    assert stream_end in text
    assert text.endswith(": x-moyin-cost-usd=0\n\n")


async def test_context_window_grows_with_the_request_and_schemas_arrive_whole(
    http: aiohttp.ClientSession, bridge: OllamaBridge
) -> None:
    long_message = {"role": "user", "content": "word " * 4000}
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    await send_request(http, "chat/completions")
    response, body = await send_request(
        http, "chat/completions", messages=[long_message], tools=[tool]
    )
    assert response.status == 400, "the model behind the bridge has a smaller context"
    assert body["error"]["code"] == "backend_rejected"
    assert [request["options"]["num_ctx"] for request in bridge.requests] == [4096, 8192]
    assert bridge.requests[1]["tools"][0]["function"]["parameters"] == SCHEMA


async def test_features_that_ollama_lacks_are_refused_by_name(http: aiohttp.ClientSession) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    response, body = await send_request(
        http, "chat/completions", tools=[tool], tool_choice="required"
    )
    assert (response.status, body["error"]["param"]) == (400, "tool_choice")


async def test_client_disconnect_cancels_the_upstream_call(
    http: aiohttp.ClientSession, bridge: OllamaBridge, record_measurement: RecordMeasurement
) -> None:
    # Without chance, and long enough that it can't have ended by itself when the client leaves.
    message = {"role": "user", "content": "Tell me the history of Europe in great detail."}
    body = {"model": "smol", "messages": [message], "max_tokens": 1500, "temperature": 0}
    async with http.post("/v1/chat/completions", json={**body, "stream": True}) as response:
        await response.content.read(500)
        response.close()
    left_at = time.monotonic()
    await asyncio.wait_for(bridge.cut.wait(), 1)
    record_measurement(
        f"upstream cancelled {time.monotonic() - left_at:.2f} s after the client left"
    )
