"""Tests WebSockets through the reverse proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.integration.proxy.fixtures import ProxyServer, proxy_serving
from tests.integration.proxy.upstream import Service, serving
from tests.integration.servers import free_port
from tests.waiting import eventually


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def proxy_server(service: Service) -> AsyncIterator[ProxyServer]:
    async with serving(service) as url:
        route = {"name": "chat", "prefix": "/chat", "upstreams": [url]}
        async with proxy_serving(route) as proxy_server:
            yield proxy_server


async def test_socket_messages_are_forwarded_both_ways(
    proxy_server: ProxyServer, service: Service
) -> None:
    async with proxy_server.client.ws_connect(
        "/chat/socket?room=1&api_key=ann-key", protocols=("chat.v1", "chat.v2")
    ) as socket:
        assert socket.protocol == "chat.v2"
        await socket.send_str("hi")
        assert await socket.receive_str() == "one: hi"
        await socket.send_bytes(b"ab" * 100_000)
        assert await socket.receive_bytes() == b"ba" * 100_000
        await socket.send_str("bye")
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4242, "as you like")
    [seen_request] = service.seen
    assert seen_request.query_string == "room=1"
    assert seen_request.headers["x-moyin-owner"] == "ann"
    assert "authorization" not in seen_request.headers


async def test_the_client_s_close_reaches_the_service(
    proxy_server: ProxyServer, service: Service
) -> None:
    async with proxy_server.client.ws_connect("/chat/socket") as socket:
        await socket.close(code=4001)
    await eventually(lambda: service.bodies == [b"4001"])


async def test_socket_without_a_key_is_closed(proxy_server: ProxyServer, service: Service) -> None:
    async with (
        aiohttp.ClientSession(proxy_server.url) as keyless_session,
        keyless_session.ws_connect("/chat/socket") as socket,
    ):
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)
    assert service.seen == []


async def test_an_unavailable_or_refusing_service_closes_the_socket(
    proxy_server: ProxyServer,
) -> None:
    async with proxy_server.client.ws_connect("/chat/not-a-socket") as socket:
        message = await socket.receive()
        assert message.type is WSMsgType.CLOSE
        assert str(message.extra).startswith("backend_unavailable")
    unavailable_url = f"http://127.0.0.1:{free_port()}"
    proxy_server.set_routes({"name": "chat", "prefix": "/chat", "upstreams": [unavailable_url]})
    async with proxy_server.client.ws_connect("/chat/socket") as socket:
        assert str((await socket.receive()).extra).startswith("backend_unavailable")


async def test_a_server_that_shuts_down_is_skipped(
    proxy_server: ProxyServer, service: Service
) -> None:
    """The handshake is repeated at the next server; this is safe, as a handshake has no effect."""

    async def answer_shutting_down(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Going\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    healthy_url = proxy_server.proxy.route_table.routes[0].upstreams[0].url
    async with await asyncio.start_server(answer_shutting_down, "127.0.0.1", 0) as server:
        closing_server_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        proxy_server.set_routes(
            {"name": "chat", "prefix": "/chat", "upstreams": [closing_server_url, healthy_url]}
        )
        for _ in range(2):
            async with proxy_server.client.ws_connect("/chat/socket") as socket:
                await socket.send_str("hi")
                assert await socket.receive_str() == "one: hi"
        # Alone, it is heard.
        proxy_server.set_routes(
            {"name": "chat", "prefix": "/chat", "upstreams": [closing_server_url]}
        )
        async with proxy_server.client.ws_connect("/chat/socket") as socket:
            assert "rejected the WebSocket: status 503" in str((await socket.receive()).extra)
