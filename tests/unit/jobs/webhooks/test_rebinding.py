"""DNS rebinding: a name that is public when it is looked at and private when it is called."""

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
from moyin.jobs.webhooks.sender import WebhookSender
from moyin.text.pictures import Pictures

OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
# What is public here: loopback has two ends, and only one of them is let through.
PUBLIC = AllowedNetworks(f"{OUTSIDE}/32")
NAME = "rebind.example"
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40


class Turncoat(AbstractResolver):
    """Leads outside once and inside ever after."""

    looked_up = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        assert host == NAME
        address = INSIDE if Turncoat.looked_up else OUTSIDE
        Turncoat.looked_up += 1
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        return None


class Place:
    """A server that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.calls.append(request.path)
        if request.path == "/away":
            # The same name: to be looked up anew.
            raise web.HTTPFound(f"http://{NAME}:{self.port}/secret.png")
        return web.Response(body=PNG)


@pytest.fixture
async def places(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Place, Place]]:
    """What listens outside and inside, on the same port."""
    monkeypatch.setattr(addresses, "ThreadedResolver", Turncoat)
    monkeypatch.setattr(Turncoat, "looked_up", 0)
    outside, inside = Place(), Place()
    apps = []
    for place in (outside, inside):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", place.handle)
        apps.append(app)
    async with TestServer(apps[0], host=OUTSIDE) as first:
        assert first.port is not None
        outside.port = first.port
        async with TestServer(apps[1], host=INSIDE, port=first.port):
            yield outside, inside


async def test_a_webhook_goes_to_the_address_that_was_checked(places: tuple[Place, Place]) -> None:
    outside, inside = places
    url = f"http://{NAME}:{outside.port}/hook"
    async with WebhookSender(signing_key=b"k", networks=PUBLIC) as sender:
        await sender.send(url, owner="ann", message_id="msg_1", payload={})
        assert Turncoat.looked_up == 1, "a second look might find another address"
        with pytest.raises(AddressNotAllowed):
            await sender.send(url, owner="ann", message_id="msg_1", payload={})
    assert (outside.calls, inside.calls) == (["/hook"], [])


@pytest.mark.parametrize("path", ["/away", "/a.png"])
async def test_a_picture_comes_from_the_address_that_was_checked(
    places: tuple[Place, Place], path: str
) -> None:
    outside, inside = places
    pictures = Pictures(PUBLIC)
    try:
        if path == "/a.png":
            await pictures.fetch([f"http://{NAME}:{outside.port}{path}"])
            assert Turncoat.looked_up == 1
        with pytest.raises(AddressNotAllowed):
            await pictures.fetch([f"http://{NAME}:{outside.port}{path}"])
    finally:
        await pictures.close()
    assert (outside.calls, inside.calls) == ([path], [])
