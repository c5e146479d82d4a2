"""Tests that the proxy forwards no request that two servers could read differently.

The requests are sent as raw bytes; where the body ends, or what the path is, is ambiguous.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.proxy.fixtures import ProxyServer, proxy_serving
from tests.integration.proxy.upstream import Service, serving

HIDDEN = "GET /assets/hidden HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ann-key\r\n\r\n"


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def proxy_server(service: Service) -> AsyncIterator[ProxyServer]:
    async with serving(service) as url:
        route = {"name": "assets", "prefix": "/assets", "upstreams": [url]}
        async with proxy_serving(route) as proxy_server:
            yield proxy_server


AMBIGUOUS = [
    f"Content-Length: {len(HIDDEN)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    f"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{HIDDEN}",
    f"Content-Length: 0\r\nContent-Length: {len(HIDDEN)}\r\n\r\n{HIDDEN}",
    f"Content-Length: +{len(HIDDEN)}\r\n\r\n{HIDDEN}",
    f"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    f"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    f"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
]


async def test_an_ambiguous_body_is_refused(proxy_server: ProxyServer, service: Service) -> None:
    head = "POST /assets/seen HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ann-key\r\n"
    for framing in AMBIGUOUS:
        response = await _send_raw(proxy_server, head + framing)
        assert response.split(b" ", 2)[1] in (b"400", b"501"), (framing, response)
    assert service.seen == []


HIDING = [
    "/assets/../jobs",
    "/assets/%2e%2e/secret",
    "/assets/%252e%252e/secret",
    "/assets/a/..%2fsecret",
    "/assets/..%5csecret",
    "/assets/%00",
    "/%61ssets/x",
    "/assets/x%0d%0aX-Evil:%201",
    "/assets/..;/secret",
    "/assets/%2e%2e;/secret",
    "/assets/..%3b/secret",
    "/assets/%2e%2e%3bx=1/secret",
    "/assets/.;/secret",
    "/assets/%c0%ae%c0%ae/secret",
]


async def test_a_disguised_path_is_refused(proxy_server: ProxyServer, service: Service) -> None:
    for path in HIDING:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ann-key\r\n\r\n"
        response = await _send_raw(proxy_server, head)
        assert response.split(b" ", 2)[1] in (b"400", b"404"), (path, response)
    assert service.seen == []


async def test_request_cannot_choose_the_upstreams_address(
    proxy_server: ProxyServer, service: Service
) -> None:
    for request_line in (
        "GET http://127.0.0.1:1/assets/x HTTP/1.1",
        "GET /assets//127.0.0.1:1/x HTTP/1.1",
        "GET /assets/@127.0.0.1:1/x HTTP/1.1",
        "GET /assets/:1/x HTTP/1.1",
        "GET /assets%2F@127.0.0.1:1/x HTTP/1.1",
        "GET /assets%2Fx HTTP/1.1",
    ):
        head = f"{request_line}\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer ann-key\r\n\r\n"
        response = await _send_raw(proxy_server, head)
        assert response.split(b" ", 2)[1] in (b"200", b"400", b"404"), response
    assert {request.path for request in service.seen} <= {
        "/x", "//127.0.0.1:1/x", "/@127.0.0.1:1/x", "/:1/x",
    }  # fmt: skip


async def _send_raw(proxy_server: ProxyServer, raw_request: str) -> bytes:
    host, port = proxy_server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw_request.encode())
    response = b""
    try:
        async with asyncio.timeout(1):
            while b"\r\n\r\n" not in response:
                chunk = await reader.read(4096)
                if not chunk:
                    break
                response += chunk
    finally:
        writer.close()
    return response
