"""Tests a thousand WebSockets and a thousand event streams that are open concurrently."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.integration.proxy.fixtures import ProxyServer, proxy_serving
from tests.integration.proxy.upstream import run_service_process
from tests.integration.servers import free_port
from tests.stack import RecordMeasurement
from tests.waiting import eventually

MANY = 1_000
# Of the test's process, which is client and gateway: three for each of both.
FILES = 10_000


@pytest.fixture(autouse=True)
def _raise_file_limit() -> None:
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard_limit), hard_limit))


@pytest.fixture
async def service() -> AsyncIterator[str]:
    port = free_port()
    async with run_service_process(port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def proxy_server(service: str) -> AsyncIterator[ProxyServer]:
    # A busy machine takes its time for the fifty that come at once.
    long_timeouts = {"connect": 60.0}
    route = {"name": "chat", "prefix": "/chat", "upstreams": [service], "timeouts": long_timeouts}
    async with proxy_serving(route) as proxy_server:
        yield proxy_server


async def test_a_thousand_sockets_and_a_thousand_streams_are_held(
    proxy_server: ProxyServer, service: str, record_measurement: RecordMeasurement
) -> None:
    started_at, semaphore = time.monotonic(), asyncio.Semaphore(50)

    async def open_event_stream() -> aiohttp.ClientResponse:
        async with semaphore:
            response = await proxy_server.client.get("/chat/events")
            assert await response.content.readuntil(b"\n\n") == b"data: first\n\n"
            return response

    async def open_websocket() -> aiohttp.ClientWebSocketResponse:
        async with semaphore:
            return await proxy_server.client.ws_connect("/chat/socket")

    streams = await asyncio.gather(*(open_event_stream() for _ in range(MANY)))
    sockets = await asyncio.gather(*(open_websocket() for _ in range(MANY)))
    [pool] = [runtime.pool for runtime in proxy_server.proxy._runtimes.values()]
    assert pool.members[0].active == 2 * MANY
    opened_at = time.monotonic()

    async def exchange_number(number: int, socket: aiohttp.ClientWebSocketResponse) -> str:
        await socket.send_str(str(number))
        return await socket.receive_str()

    replies = await asyncio.gather(
        *(exchange_number(n, socket) for n, socket in enumerate(sockets))
    )
    assert [reply.partition(": ")[2] for reply in replies] == [str(n) for n in range(MANY)]
    answered_at = time.monotonic()
    # Who holds nothing is served beside them.
    async with proxy_server.client.get("/chat/x") as response:
        assert response.status == 200
    async with aiohttp.request("POST", f"{service}/go-on") as response:
        assert response.status == 200
    stream_ends = await asyncio.gather(*(response.read() for response in streams))
    assert stream_ends == [b"data: second\n\n"] * MANY
    record_measurement(
        f"{MANY} WebSockets and {MANY} streams: open after "
        f"{opened_at - started_at:.1f} s, all sockets "
        f"answered within {answered_at - opened_at:.2f} s"
    )
    await asyncio.gather(*(socket.close() for socket in sockets))
    await eventually(lambda: pool.members[0].active == 0)
