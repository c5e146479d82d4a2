"""Tests over real servers that long connections end soon after their key becomes invalid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from moyin.store.keys import KeyStore
from tests.integration.gateway.fixtures import Farm
from tests.integration.gateway.test_jobs import CHAT
from tests.integration.proxy.fixtures import proxy_serving
from tests.integration.proxy.upstream import Service, serving
from tests.stack import RecordMeasurement

PROMISED_SECONDS = 10.0


async def _follow_socket(
    path: str, client: aiohttp.ClientSession, first_message_event: asyncio.Event
) -> str:
    """Read a WebSocket to its end, and return the close code as text.

    Args:
        first_message_event: set at the first message.
    """
    async with client.ws_connect(path) as socket:
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                first_message_event.set()
        return f"{socket.close_code}"


async def _follow_stream(
    path: str, client: aiohttp.ClientSession, first_message_event: asyncio.Event
) -> str:
    """Read a stream to its end, and return the last event.

    Args:
        first_message_event: set at the first event.
    """
    last_chunk = b""
    async with client.get(path) as response:
        assert response.status == 200
        async for chunk in response.content.iter_any():
            last_chunk = chunk
            first_message_event.set()
    return last_chunk.decode()


@asynccontextmanager
async def _follow_all(
    client: aiohttp.ClientSession, paths: dict[str, Any]
) -> AsyncIterator[dict[str, asyncio.Task[str]]]:
    tasks: dict[str, asyncio.Task[str]] = {}
    start_events = []
    for path, follow_stream in paths.items():
        start_events.append(asyncio.Event())
        tasks[path] = asyncio.create_task(follow_stream(path, client, start_events[-1]))
    async with asyncio.timeout(20):
        for event in start_events:
            await event.wait()
    yield tasks


async def test_event_streams_end_after_their_key_is_revoked(
    farm: Farm, record_measurement: RecordMeasurement
) -> None:
    keys = KeyStore(farm.database)
    key_id, key = await keys.create("ann", "short-lived")
    job = await farm.submit_job(CHAT)
    render_job = await farm.submit_job({"kind": "render", "workflow": {"1": {"class_type": "EmptyImage",
                                "inputs": {}}}})  # fmt: skip
    paths = {
        f"/jobs/{job['id']}/events": _follow_stream,
        f"/jobs/{job['id']}/ws": _follow_socket,
        f"/api/v2/jobs/{render_job['id']}/events": _follow_stream,
        "/ws?clientId=desk": _follow_socket,
        "/api/ws?clientId=desk": _follow_socket,
    }
    async with (
        farm.open_session(key) as client,
        _follow_all(client, paths) as tasks,
        _follow_all(farm.client, {f"/jobs/{job['id']}/ws": _follow_socket}) as other_streams,
    ):
        started_at = time.monotonic()
        await keys.revoke(key_id)
        async with asyncio.timeout(PROMISED_SECONDS):
            end_texts = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        record_measurement(
            f"revoked: five connections ended after {time.monotonic() - started_at:.1f} s"
        )
        for path, end_text in end_texts.items():
            if paths[path] is _follow_socket:
                assert end_text == "1008", path
            else:
                assert end_text.startswith("event: error\n") and "invalid_api_key" in end_text, path
        for task in other_streams.values():
            assert not task.done()
            task.cancel()


@pytest.mark.parametrize("path", ["/chat/socket", "/chat/events"])
async def test_proxied_connections_end_after_their_key_is_revoked(path: str) -> None:
    service = Service()
    async with serving(service) as url:
        route = {"name": "chat", "prefix": "/chat", "upstreams": [url]}
        async with proxy_serving(route) as proxy_server:
            if path.endswith("socket"):
                async with proxy_server.client.ws_connect(path) as socket:
                    await socket.send_str("hi")
                    assert await socket.receive_str() == "one: hi"
                    proxy_server.keys.identities.pop("ann-key")
                    async with asyncio.timeout(PROMISED_SECONDS):
                        message = await socket.receive()
                    close_message = (message.type, message.data, message.extra)
                    reason = "invalid_api_key: the API key or the session of this connection has ended; authenticate again"
                    assert close_message == (WSMsgType.CLOSE, 1008, reason)
            else:
                first_message_event = asyncio.Event()
                stream = asyncio.create_task(
                    _follow_stream(path, proxy_server.client, first_message_event)
                )
                await first_message_event.wait()
                proxy_server.keys.identities.pop("ann-key")
                async with asyncio.timeout(PROMISED_SECONDS):
                    assert "invalid_api_key" in await stream
