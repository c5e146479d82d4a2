from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import ollama
import pytest
from aiohttp import web
from yarl import URL

from moyin.cli.main import run
from moyin.cli.ollama_connector import OllamaConnector
from moyin.stack.profile import Profile, write_profile
from tests.stack import ROOT

KEY = "moyin_key"


class FakeGateway:
    """Answers Ollama's calls below ``/v1/ollama``, and records all requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []

    def build_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/ollama/api/tags", self.handle_tags)
        app.router.add_post("/v1/ollama/api/chat", self.handle_chat)
        app.router.add_route("*", "/{path:.*}", self.handle_plain)
        return app

    async def handle_tags(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return web.json_response({"models": [{"model": "auto"}]})

    async def handle_chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        body = await request.json()
        lines = [
            {"model": body["model"], "message": {"role": "assistant", "content": text}}
            for text in ("one ", "two", "")
        ]
        lines[-1]["done"] = True
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        return response

    async def handle_plain(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return web.json_response({"path": request.raw_path})


@pytest.fixture
async def gateway_and_url() -> AsyncIterator[tuple[FakeGateway, str]]:
    gateway = FakeGateway()
    runner = web.AppRunner(gateway.build_app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield gateway, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def url(gateway_and_url: tuple[FakeGateway, str]) -> AsyncIterator[str]:
    """Return the URL of the connector's port."""
    async with OllamaConnector(Profile(url=gateway_and_url[1], api_key=KEY)).serve(0) as url:
        yield url


GatewayAndUrl = tuple[FakeGateway, str]


async def test_the_ollama_sdk_needs_no_key(gateway_and_url: GatewayAndUrl, url: str) -> None:
    async with ollama.AsyncClient(url) as client:
        assert [model.model for model in (await client.list()).models] == ["auto"]
        chunks = await client.chat("auto", [{"role": "user", "content": "hi"}], stream=True)
        texts = [chunk.message.content async for chunk in chunks]
    assert "".join(filter(None, texts)) == "one two"
    assert [request.headers["authorization"] for request in gateway_and_url[0].requests] == [
        f"Bearer {KEY}"
    ] * 2


@pytest.mark.parametrize(
    ("path", "forwarded_path"),
    [
        ("/api/show?x=%20y", "/v1/ollama/api/show?x=%20y"),
        ("/api/blobs/a%2Fb", "/v1/ollama/api/blobs/a%2Fb"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/responses?x=1", "/v1/responses?x=1"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/models/qwen3:8b", "/v1/models/qwen3:8b"),
    ],
)
async def test_paths_are_mapped_to_those_of_the_gateway(
    url: str, path: str, forwarded_path: str
) -> None:
    target = URL(url + path, encoded=True)
    async with aiohttp.ClientSession() as session, session.post(target, json={}) as response:
        assert await response.json() == {"path": forwarded_path}


async def test_calls_that_change_models_are_sent_to_the_named_host(
    gateway_and_url: GatewayAndUrl,
) -> None:
    connector = OllamaConnector(Profile(url=gateway_and_url[1], api_key=KEY), "gpu-1")
    async with connector.serve(0) as url, aiohttp.ClientSession(url) as session:
        for path in ("pull", "blobs/sha256-1", "chat"):
            await session.post(f"/api/{path}", json={"model": "m"})
        await session.delete("/api/delete", headers={"x-moyin-backend": "gpu-0"})
    backend_headers = [
        request.headers.get("x-moyin-backend") for request in gateway_and_url[0].requests
    ]
    assert backend_headers == ["gpu-1", "gpu-1", None, "gpu-0"]


async def test_the_port_responds_that_ollama_is_running(
    gateway_and_url: GatewayAndUrl, url: str
) -> None:
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/") as response:
            assert (response.status, await response.text()) == (200, "Ollama is running")
        async with session.head("/") as response:
            assert (response.status, await response.read()) == (200, b"")
    assert gateway_and_url[0].requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/jobs", "/accounts/keys", "/apis", "/v1", "/prompt", "/v1/messages/batches",
        "/v1/responses/resp_1", "/v1/chat/completions/1", "/v1/modelsx",
    ],
)  # fmt: skip
async def test_other_paths_of_the_gateway_are_out_of_reach(
    gateway_and_url: GatewayAndUrl, url: str, path: str
) -> None:
    async with aiohttp.ClientSession(url) as session, session.get(path) as response:
        assert response.status == 404
        assert path in (await response.json())["error"]
    assert gateway_and_url[0].requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://farm.example"},
        {"host": "farm.example"},
        {"sec-fetch-site": "cross-site"},
        {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
         "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ],
)  # fmt: skip
async def test_refusals_have_the_error_format_of_ollama(
    gateway_and_url: GatewayAndUrl, url: str, headers: dict[str, str]
) -> None:
    async with (
        aiohttp.ClientSession(url) as session,
        session.get("/api/tags", headers=headers) as response,
    ):
        body = await response.json()
        assert (response.status, body["code"]) == (403, "cross_site_request")
        assert isinstance(body["error"], str)
    assert gateway_and_url[0].requests == []


async def test_a_gateway_that_is_down_is_an_error_for_the_sdk() -> None:
    connector = OllamaConnector(Profile(url="http://127.0.0.1:9", api_key=KEY))
    async with connector.serve(0) as url, ollama.AsyncClient(url) as client:
        with pytest.raises(ollama.ResponseError, match="no response from the gateway") as exc_info:
            await client.list()
    assert exc_info.value.status_code == 502


def test_the_command_reports_a_missing_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYIN_URL", "http://127.0.0.1:9")
    assert run(["connect", "ollama"]) == 1
    assert "no API key is configured" in capsys.readouterr().err


async def test_the_command_serves_until_it_is_interrupted(
    gateway_and_url: GatewayAndUrl, tmp_path: Path
) -> None:
    write_profile(tmp_path / "profile.toml", Profile(url=gateway_and_url[1], api_key=KEY))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moyin.cli.main", "connect", "ollama", "--port", "0",
        cwd=ROOT, env={**os.environ, "MOYIN_DATA": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first_line = (await process.stdout.readline()).decode()
    async with ollama.AsyncClient(first_line.split(" at ")[1].split()[0]) as client:
        assert (await client.list()).models
    process.send_signal(signal.SIGTERM)
    _, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
