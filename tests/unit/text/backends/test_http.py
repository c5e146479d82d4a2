from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from moyin.errors import BackendRejected, BackendUnavailable, Overloaded
from moyin.text.backends import http
from moyin.text.backends.http import Endpoint, FixedEndpoint, HttpClient
from tests.integration.text.upstreams import Upstream


@asynccontextmanager
async def open_client(upstream: Upstream) -> AsyncIterator[HttpClient]:
    async with upstream.running():
        client = HttpClient(
            FixedEndpoint(Endpoint(url=upstream.url)), credentials=lambda key: {}, max_connections=1
        )
        yield client
        await client.close()
        if upstream.holds:
            await upstream.left.wait()
            await asyncio.sleep(0.01)  # it closes its side


def new_deadline() -> float:
    return asyncio.get_running_loop().time() + 30


async def call_backend(client: HttpClient, *, stream: bool) -> None:
    if not stream:
        await client.post("/x", b"{}", new_deadline())
        return
    async for _ in client.stream("/x", b"{}", new_deadline()):
        pass


@pytest.mark.parametrize("stream", [False, True])
async def test_error_with_incomplete_body_keeps_its_status(stream: bool) -> None:
    response_head = "HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 99\r\n\r\n"
    async with open_client(Upstream(response_head + '{"error"')) as client:
        with pytest.raises(Overloaded) as exc_info:
            await call_backend(client, stream=stream)
    assert exc_info.value.retry_after == 7
    async with open_client(Upstream(response_head.replace("429", "500"))) as client:
        with pytest.raises(BackendUnavailable, match="status 500"):
            await call_backend(client, stream=stream)


async def test_error_body_is_read_whole() -> None:
    response_head = "HTTP/1.1 400 No\r\ncontent-length: 31\r\n\r\n"
    async with open_client(
        Upstream(response_head + '{"error":{"mess', 'age":"too odd"}}')
    ) as client:
        with pytest.raises(BackendRejected, match="too odd"):
            await call_backend(client, stream=False)


async def test_endless_error_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_ERROR_SECONDS", 0.05)
    response_head = "HTTP/1.1 500 No\r\ncontent-length: 31\r\n\r\n{"
    async with open_client(Upstream(response_head, holds=True)) as client, asyncio.timeout(10):
        with pytest.raises(BackendUnavailable, match="status 500"):
            await call_backend(client, stream=False)


async def test_endless_response_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_RESPONSE_BYTES", 1_000)
    response_head = "HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n"
    async with (
        open_client(Upstream(response_head + "x" * 1_001, holds=True)) as client,
        asyncio.timeout(10),
    ):
        with pytest.raises(BackendUnavailable, match="exceeds"):
            await client.post("/x", b"{}", new_deadline())
    monkeypatch.setattr(http, "_MAX_RESPONSE_BYTES", 1)
    async with open_client(Upstream(None)) as client:
        with pytest.raises(BackendUnavailable, match="exceeds"):
            await client.get("/x", 10)
