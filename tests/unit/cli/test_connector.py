from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.cli.connector import Connector, build_upstream_headers, reject_cross_site
from moyin.cli.main import run
from moyin.errors import CrossSiteRequest, StackError
from moyin.stack.profile import Profile, write_profile
from tests.stack import ROOT

KEY = "moyin_key"
PICTURE = bytes(range(256)) * 8_000  # larger than one read


class FakeGateway:
    """Records its requests and returns canned responses."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.may_proceed = asyncio.Event()
        self.client_left = asyncio.Event()

    def build_app(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/upload/image", self.handle_upload)
        app.router.add_get("/events", self.handle_events)
        app.router.add_get("/broken", self.handle_broken)
        app.router.add_get("/packed", self.handle_compressed)
        app.router.add_get("/ws", self.handle_websocket)
        app.router.add_route("*", "/{path:.*}", self.handle_plain)
        return app

    async def handle_plain(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        if request.path == "/refused":
            return web.json_response({"error": "no"}, status=418, reason="Teapot")
        return web.json_response({"path": request.raw_path}, headers={"x-moyin-cost": "0"})

    async def handle_upload(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    async def handle_events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"first")
        try:
            await self.may_proceed.wait()
            await response.write(b"second")
        except asyncio.CancelledError:
            self.client_left.set()
            raise
        return response

    async def handle_broken(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def handle_compressed(self, request: web.Request) -> web.Response:
        compressed_body = gzip.compress(b"packed")
        return web.Response(body=compressed_body, headers={"content-encoding": "gzip"})

    async def handle_websocket(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.query.get("clientId") == "nobody":
            return web.json_response({"code": "invalid_api_key"}, status=401)
        websocket = web.WebSocketResponse(protocols=["comfy"], max_msg_size=0)
        await websocket.prepare(request)
        async for message in websocket:
            if message.data == "leave":
                await websocket.close(code=1013, message=b"slow_consumer")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await websocket.send_str(f"echo {message.data}")
            else:
                await websocket.send_bytes(message.data[::-1])
        self.client_left.set()
        return websocket


@pytest.fixture
async def gateway_and_url() -> AsyncIterator[tuple[FakeGateway, str]]:
    gateway = FakeGateway()
    runner = web.AppRunner(gateway.build_app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield gateway, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def client(gateway_and_url: tuple[FakeGateway, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """Return a client of the connector's port."""
    async with (
        Connector(Profile(url=gateway_and_url[1], api_key=KEY)).serve(0) as url,
        aiohttp.ClientSession(url, auto_decompress=False) as session,
    ):
        yield session


GatewayAndUrl = tuple[FakeGateway, str]


async def test_gateway_gets_the_key_and_no_local_headers(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    sent_headers = {
        "x-api-key": "other", "authorization": "Basic b3RoZXI=", "cookie": "a=b",
        "referer": "http://127.0.0.1/", "connection": "x-hop", "x-hop": "1", "x-kept": "yes",
    }  # fmt: skip
    async with client.get("/object_info/A%2FB?x=%20y", headers=sent_headers) as response:
        assert (await response.json())["path"] == "/object_info/A%2FB?x=%20y"
        assert response.headers["x-moyin-cost"] == "0"
    [request] = gateway_and_url[0].requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert f"http://{request.headers['host']}" == gateway_and_url[1]
    assert request.headers["x-kept"] == "yes"
    assert not {"x-api-key", "cookie", "referer", "origin", "x-hop"} & {
        name.lower() for name in request.headers
    }


async def test_responses_are_forwarded_unchanged(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    async with client.post("/refused", json={}) as response:
        assert (response.status, response.reason) == (418, "Teapot")
        assert await response.json() == {"error": "no"}
    async with client.get("/packed") as response:
        assert response.headers["content-encoding"] == "gzip"
        assert gzip.decompress(await response.read()) == b"packed"


async def test_compressed_request_is_forwarded_unchanged(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    compressed_body = gzip.compress(b"x" * 1000)
    headers = {"content-encoding": "gzip"}
    async with client.post("/upload/image", data=compressed_body, headers=headers) as response:
        assert await response.read() == b"x" * 1000, "only the server may decode the body"
    [request] = gateway_and_url[0].requests
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["content-length"] == str(len(compressed_body))


async def test_bodies_stream_in_both_directions(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    parts_to_send: asyncio.Queue[bytes] = asyncio.Queue()

    async def generate_body() -> AsyncIterator[bytes]:
        while part := await parts_to_send.get():
            yield part

    parts_to_send.put_nowait(b"one")
    async with client.post("/upload/image", data=generate_body()) as response:
        assert await response.content.readany() == b"one"
        parts_to_send.put_nowait(PICTURE)
        assert await response.content.readexactly(len(PICTURE)) == PICTURE
        parts_to_send.put_nowait(b"")
        assert await response.content.read() == b""
    async with client.get("/events") as response:
        assert await response.content.readany() == b"first"
        gateway_and_url[0].may_proceed.set()
        assert await response.content.read() == b"second"


async def test_client_disconnect_reaches_the_gateway(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    async with client.get("/events") as response:
        assert await response.content.readany() == b"first"
        response.close()
    await asyncio.wait_for(gateway_and_url[0].client_left.wait(), 30)


async def test_interrupted_response_does_not_look_complete(client: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.get("/broken") as response:
            await response.read()


async def test_websockets_relay_text_and_pictures(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    socket = await client.ws_connect("/ws?clientId=a", protocols=["comfy"], max_msg_size=0)
    assert socket.protocol == "comfy"
    await socket.send_str("hello")
    assert await socket.receive_str() == "echo hello"
    await socket.send_bytes(PICTURE)
    assert await socket.receive_bytes() == PICTURE[::-1]
    assert gateway_and_url[0].requests[0].headers["authorization"] == f"Bearer {KEY}"
    await socket.send_str("leave")
    last_message = await socket.receive()
    assert (last_message.type, last_message.data, last_message.extra) == (
        aiohttp.WSMsgType.CLOSE,
        1013,
        "slow_consumer",
    )
    second_socket = await client.ws_connect("/ws?clientId=b")
    gateway_and_url[0].client_left.clear()
    await second_socket.close()
    await asyncio.wait_for(gateway_and_url[0].client_left.wait(), 30)


async def test_rejected_websocket_keeps_its_status(client: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as exc_info:
        await client.ws_connect("/ws?clientId=nobody")
    assert exc_info.value.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "farm.example"},
        {"host": "127.0.0.1.farm.example:8188"},
        {"host": "farm@127.0.0.1"},
        {"host": ""},
        {"host": "127.0.0.1:8188", "origin": "http://farm.example"},
        {"host": "127.0.0.1:8188", "origin": "http://127.0.0.1:3000"},
        {"host": "127.0.0.1:8188", "origin": "null"},
        {"host": "localhost:8188", "sec-fetch-site": "cross-site"},
        {"host": "localhost:8188", "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
        {
            "host": "localhost:8188",
            "sec-fetch-site": "cross-site",
            "sec-fetch-mode": "navigate",
            "sec-fetch-dest": "iframe",
        },
    ],
)
def test_cross_site_requests_are_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSiteRequest):
        reject_cross_site(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8188"},
        {"host": "LOCALHOST:8188", "origin": "http://localhost:8188"},
        {"host": "[::1]:8188"},
        {"host": "127.0.0.1:8188", "origin": "http://127.0.0.1:8188"},
        {"host": "127.0.0.1:8188", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {
            "host": "127.0.0.1:8188",
            "sec-fetch-site": "cross-site",
            "sec-fetch-mode": "navigate",
            "sec-fetch-dest": "document",
        },
    ],
)
def test_local_clients_are_accepted(headers: dict[str, str]) -> None:
    reject_cross_site(headers)


async def test_rejection_has_comfyui_format_and_is_not_forwarded(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    async with client.post("/prompt", headers={"origin": "http://farm.example"}) as response:
        assert response.status == 403
        assert (await response.json())["error"]["type"] == "cross_site_request"
    with pytest.raises(aiohttp.WSServerHandshakeError) as exc_info:
        await client.ws_connect("/ws", headers={"host": "farm.example"})
    assert exc_info.value.status == 403
    assert gateway_and_url[0].requests == []


async def test_absolute_request_urls_are_rejected(
    gateway_and_url: GatewayAndUrl, client: aiohttp.ClientSession
) -> None:
    port = client._base_url.port if client._base_url else 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET {gateway_and_url[1]}/prompt HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    )
    status = await reader.readline()
    writer.close()
    assert status.split()[1] in (b"400", b"403")
    assert gateway_and_url[0].requests == []


def test_only_the_frontend_page_gets_the_cookie() -> None:
    request_headers = {"host": "127.0.0.1", "cookie": "moyin_session=other"}
    # The gateway accepts the one name over HTTPS and the other over HTTP.
    assert (
        build_upstream_headers(request_headers, KEY, "/comfy/")["cookie"]
        == f"__Host-moyin_session={KEY}; moyin_session={KEY}"
    )
    assert "cookie" not in build_upstream_headers(request_headers, KEY, "/api/queue")


async def test_unreachable_gateway_is_reported_to_the_client() -> None:
    stopped_server = TestServer(web.Application())
    await stopped_server.start_server()
    url = str(stopped_server.make_url("")).rstrip("/")
    await stopped_server.close()
    async with (
        Connector(Profile(url=url, api_key=KEY)).serve(0) as local_url,
        aiohttp.ClientSession(local_url) as session,
    ):
        async with session.get("/prompt") as response:
            assert response.status == 502
            assert (await response.json())["error"]["type"] == "backend_unavailable"
        with pytest.raises(aiohttp.WSServerHandshakeError) as exc_info:
            await session.ws_connect("/ws")
        assert exc_info.value.status == 502


async def test_port_in_use_is_reported(gateway_and_url: GatewayAndUrl) -> None:
    with socket.socket() as used_socket:
        used_socket.bind(("127.0.0.1", 0))
        used_socket.listen()
        port = used_socket.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} is in use"):
            async with Connector(Profile(url=gateway_and_url[1], api_key=KEY)).serve(port):
                raise AssertionError("the port is open")


def test_connect_reports_missing_profile_key_and_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["comfyui", "connect"]) == 1
    assert "start Moyin with `moyin up`" in capsys.readouterr().err
    monkeypatch.setenv("MOYIN_URL", "http://127.0.0.1:9")
    assert run(["comfyui", "connect"]) == 1
    assert "no API key is configured" in capsys.readouterr().err
    monkeypatch.setenv("MOYIN_API_KEY", KEY)
    assert run(["comfyui", "connect"]) == 1
    assert "no response from the gateway at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signal_number", "options"), [(signal.SIGINT, []), (signal.SIGTERM, ["--json"])]
)
async def test_the_command_ends_cleanly_on_a_signal(
    gateway_and_url: GatewayAndUrl,
    tmp_path: Path,
    signal_number: signal.Signals,
    options: list[str],
) -> None:
    write_profile(tmp_path / "profile.toml", Profile(url=gateway_and_url[1], api_key=KEY))
    environment: dict[str, Any] = {**os.environ, "MOYIN_DATA": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moyin.cli.main", "comfyui", "connect", "--port", "0", *options,
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first_line = (await process.stdout.readline()).decode()
    url = json.loads(first_line)["url"] if options else first_line.split(" at ")[1].split()[0]
    async with aiohttp.ClientSession(url) as session:
        socket = await session.ws_connect("/ws?clientId=a")
        process.send_signal(signal_number)
        close_message = await socket.receive()
        assert (close_message.type, close_message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    _, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
