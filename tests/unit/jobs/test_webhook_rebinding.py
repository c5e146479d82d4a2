"""Tests DNS rebinding: a host name leads to a public address when checked, then to a private one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from moyin.errors import AddressNotAllowed
from moyin.http import public_addresses as addresses
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.webhooks import WebhookSender
from moyin.text.pictures import PictureFetcher

OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
# One loopback address stands in for a public one; the other is private.
PUBLIC = AllowedNetworks(f"{OUTSIDE}/32")
NAME = "rebind.example"
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40


class RebindingResolver(AbstractResolver):
    """Resolves a name to the public address once, and to the private address from then on."""

    lookup_count = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        assert host == NAME
        address = INSIDE if RebindingResolver.lookup_count else OUTSIDE
        RebindingResolver.lookup_count += 1
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        return None


class CountingServer:
    """A server that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.calls.append(request.path)
        if request.path == "/away":
            # The same name, which is resolved again.
            raise web.HTTPFound(f"http://{NAME}:{self.port}/secret.png")
        return web.Response(body=PNG)


@pytest.fixture
async def servers(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[CountingServer, CountingServer]]:
    """Return servers at the public and the private address, on the same port."""
    monkeypatch.setattr(addresses, "ThreadedResolver", RebindingResolver)
    monkeypatch.setattr(RebindingResolver, "lookup_count", 0)
    public_server, private_server = CountingServer(), CountingServer()
    apps = []
    for server in (public_server, private_server):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        apps.append(app)
    async with TestServer(apps[0], host=OUTSIDE) as public_test_server:
        assert public_test_server.port is not None
        public_server.port = public_test_server.port
        async with TestServer(apps[1], host=INSIDE, port=public_test_server.port):
            yield public_server, private_server


async def test_a_webhook_is_sent_to_the_checked_address(
    servers: tuple[CountingServer, CountingServer],
) -> None:
    public_server, private_server = servers
    url = f"http://{NAME}:{public_server.port}/hook"
    async with WebhookSender(signing_key=b"k", networks=PUBLIC) as sender:
        await sender.send(url, owner="ann", message_id="msg_1", payload={})
        assert RebindingResolver.lookup_count == 1, "a second lookup might return another address"
        with pytest.raises(AddressNotAllowed):
            await sender.send(url, owner="ann", message_id="msg_1", payload={})
    assert (public_server.calls, private_server.calls) == (["/hook"], [])


@pytest.mark.parametrize("path", ["/away", "/a.png"])
async def test_a_picture_is_fetched_from_the_checked_address(
    servers: tuple[CountingServer, CountingServer], path: str
) -> None:
    public_server, private_server = servers
    picture_fetcher = PictureFetcher(PUBLIC)
    try:
        if path == "/a.png":
            await picture_fetcher.fetch([f"http://{NAME}:{public_server.port}{path}"])
            assert RebindingResolver.lookup_count == 1
        with pytest.raises(AddressNotAllowed):
            await picture_fetcher.fetch([f"http://{NAME}:{public_server.port}{path}"])
    finally:
        await picture_fetcher.close()
    assert (public_server.calls, private_server.calls) == ([path], [])
