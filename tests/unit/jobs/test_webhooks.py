from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.errors import AddressNotAllowed, BackendRejected, BackendUnavailable, InvalidRequest
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.webhooks import WebhookSender


class FakeReceiver:
    def __init__(self) -> None:
        self.status = 204
        self.calls: list[tuple[str, bytes]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.calls.append((request.path, await request.read()))
        headers = {"location": "/secret"} if 300 <= self.status < 400 else {}
        return web.Response(status=self.status, headers=headers)


@pytest.fixture
async def receiver_and_url() -> AsyncIterator[tuple[FakeReceiver, str]]:
    fake_receiver = FakeReceiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake_receiver.handle)
    async with TestServer(app) as server:
        yield fake_receiver, str(server.make_url("/hook"))


def make_sender(allowed_networks: str = "127.0.0.0/8,::1") -> WebhookSender:
    return WebhookSender(signing_key=b"k", networks=AllowedNetworks(allowed_networks))


async def send_webhook(sender: WebhookSender, url: str) -> None:
    await sender.send(url, owner="ann", message_id="msg_1", payload={"a": 1})


async def test_a_webhook_is_posted_as_json(receiver_and_url: tuple[FakeReceiver, str]) -> None:
    webhook_server, url = receiver_and_url
    async with make_sender() as sender:
        await send_webhook(sender, url)
    assert [(path, json.loads(body)) for path, body in webhook_server.calls] == [
        ("/hook", {"a": 1})
    ]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500, 503])
async def test_a_failed_delivery_is_retryable(
    receiver_and_url: tuple[FakeReceiver, str], status: int
) -> None:
    webhook_server, url = receiver_and_url
    webhook_server.status = status
    async with make_sender() as sender:
        with pytest.raises(BackendUnavailable) as exc_info:
            await send_webhook(sender, url)
    assert exc_info.value.retryable
    assert [path for path, _ in webhook_server.calls] == ["/hook"]


async def test_status_410_is_final(receiver_and_url: tuple[FakeReceiver, str]) -> None:
    webhook_server, url = receiver_and_url
    webhook_server.status = 410
    async with make_sender() as sender:
        with pytest.raises(BackendRejected) as exc_info:
            await send_webhook(sender, url)
    assert not exc_info.value.retryable


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433"])
async def test_a_private_address_is_never_called(
    receiver_and_url: tuple[FakeReceiver, str], host: str
) -> None:
    webhook_server, url = receiver_and_url
    async with make_sender("") as sender:
        with pytest.raises((AddressNotAllowed, BackendUnavailable)):
            await send_webhook(sender, url.replace("127.0.0.1", host))
    assert webhook_server.calls == []


@pytest.mark.parametrize(
    "host", ["\uff11\uff12\uff17.\uff10.\uff10.\uff11", "①②⑦.0.0.1", "127。0。0。1"]
)
async def test_a_private_address_is_refused_in_every_notation(
    receiver_and_url: tuple[FakeReceiver, str], host: str
) -> None:
    webhook_server, url = receiver_and_url
    async with make_sender("") as sender:
        with pytest.raises(AddressNotAllowed):
            await send_webhook(sender, url.replace("127.0.0.1", host))
    assert webhook_server.calls == []


@pytest.mark.parametrize("url", ["http://a..b/", f"http://{'a' * 64}.example/"])
async def test_an_invalid_host_name_is_not_retried(url: str) -> None:
    async with make_sender() as sender:
        with pytest.raises(InvalidRequest) as exc_info:
            await send_webhook(sender, url)
    assert (exc_info.value.field, exc_info.value.retryable) == ("webhook", False)


async def test_a_closed_port_is_retryable(unused_tcp_port: int) -> None:
    async with make_sender() as sender:
        with pytest.raises(BackendUnavailable):
            await send_webhook(sender, f"http://127.0.0.1:{unused_tcp_port}/")
