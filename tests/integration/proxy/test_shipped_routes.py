"""Tests Ollama's clients at the gateway's root with the shipped route table and HAProxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.stack import RunningStack
from tests.waiting import eventually


@pytest.fixture
async def client(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as client:
        yield client


async def test_ollamas_own_paths_lead_to_the_models(client: aiohttp.ClientSession) -> None:
    async with client.get("/api/version") as response:
        assert (response.status, "version" in await response.json()) == (200, True)
    async with client.get("/api/tags") as response:
        names = {model["name"] for model in (await response.json())["models"]}
    assert any(name.startswith("smollm2-135m") for name in names)
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Say yes."}],
        "options": {"num_predict": 8},
    }

    async def send_chat() -> list[dict[str, Any]]:
        async with client.post("/api/chat", json=body) as response:
            if response.status == 502:
                # Right after its start, on a busy machine, the model's server takes seconds.
                assert (await response.json())["code"] == "backend_unavailable"
                return []
            assert response.status == 200, await response.text()
            assert response.headers["x-moyin-backend"] == "local"
            return [json.loads(line) async for line in response.content]

    lines = await eventually(send_chat, 180)
    assert len(lines) > 2 and lines[-1]["done"]


async def test_other_api_paths_are_not_found_and_errors_have_ollamas_shape(
    client: aiohttp.ClientSession, gateway: RunningStack
) -> None:
    async with client.get("/api/no-such-thing") as response:
        assert (response.status, (await response.json())["code"]) == (404, "route_not_found")
    async with (
        aiohttp.ClientSession(gateway.url) as keyless_session,
        keyless_session.get("/api/tags") as response,
    ):
        body = await response.json()
        assert (response.status, body["code"]) == (401, "missing_api_key")
        assert isinstance(body["error"], str)


async def test_no_request_is_smuggled_into_another_connection(
    client: aiohttp.ClientSession, gateway: RunningStack
) -> None:
    # Were it taken for the beginning of the next request on a connection that HAProxy shares,
    # that request's own first line would end up in this header.
    smuggled_request = "GET /smuggled HTTP/1.1\r\nHost: x\r\nX-Swallow: "
    for framing in (
        f"Content-Length: {len(smuggled_request) + 5}\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled_request}",
        f"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled_request}",
        f"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled_request}",
        f"Content-Length: 0\r\nContent-Length: {len(smuggled_request)}\r\n\r\n{smuggled_request}",
        f"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled_request}",
    ):
        await _send_raw(
            gateway,
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {gateway.api_key}\r\n{framing}",
        )
        for path in ("/healthz", "/api/version", "/v1/healthz", "/jobs?limit=1") * 2:
            async with client.get(path) as response:
                assert response.status == 200, (framing, path)


async def _send_raw(gateway: RunningStack, raw_request: str) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw_request.encode())
    try:
        async with asyncio.timeout(0.7):
            while await reader.read(4096):
                continue
    except TimeoutError:
        pass
    finally:
        writer.close()
