"""What goes wrong upstream, per adapter over real sockets: the client gets an answer or an error
of its own protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.models_fixtures import serving

MODEL = {"name": "m", "context": 8000, "price": {"input": 1, "output": 1}}
SSE = "content-type: text/event-stream\r\n"
BEGUN = {
    "openai": 'data: {"id":"1","model":"m","choices":[{"delta":{"content":"Hi"}}]}\n\n',
    "anthropic": (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message",'
        '"role":"assistant","content":[],"model":"m","usage":{"input_tokens":3,"output_tokens":1}}}'
        '\n\nevent: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hi"}}\n\n'
    ),
    "ollama": '{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}\n',
}
KINDS = sorted(BEGUN)
PATHS = ["chat/completions", "messages"]


class Upstream:
    """Answers every POST with the same bytes, then closes; probes with 200.

    ``later`` follows after a pause, so that it comes in a piece of its own.
    """

    def __init__(self, answer: str, later: str = "", *, silent: bool = False) -> None:
        self._answer = answer.encode()
        self._later = later.encode()
        self._silent = silent
        self.asked = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        else:
            self.asked += 1
            if self._silent:
                await reader.read(10**6)
                await reader.read()
            writer.write(self._answer)
            if self._later:
                await asyncio.sleep(0.1)
                writer.write(self._later)
        await writer.drain()
        writer.close()


def backend(kind: str, url: str, **more: Any) -> dict[str, Any]:
    place: dict[str, Any] = {
        "openai": {"base_url": f"{url}/v1"},
        "anthropic": {"base_url": url, "api_key_env": "LLAMA_KEY"},
        "ollama": {"hosts": [url]},
    }[kind]
    return {"name": kind, "type": kind, "models": [MODEL], **place, **more}


async def ask(door: Any, path: str, *, stream: bool) -> tuple[aiohttp.ClientResponse, str]:
    headers = {"authorization": f"Bearer {door.api_key}"}
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "m", "max_tokens": 5, "messages": messages, "stream": stream}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{door.url}/v1/{path}", json=body) as response,
    ):
        return response, await response.text()


def code_of(text: str) -> str:
    error = json.loads(text)["error"]
    return str(error["code"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ("HTTP/1.1 500 No\r\ncontent-length: 6\r\n\r\nsecret", 502, "backend_unavailable"),
        (
            "HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}",
            429,
            "overloaded",
        ),
        ("HTTP/1.1 401 No\r\ncontent-length: 6\r\n\r\nsecret", 503, "service_unavailable"),
        (
            'HTTP/1.1 400 No\r\ncontent-length: 32\r\n\r\n{"error":{"message":"too weird"}}'[:-1],
            400,
            "backend_rejected",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", 502, None),
        ("", 502, "backend_unavailable"),
    ],
    ids=["500", "429", "401", "400", "garbage", "cut"],
)
async def test_before_the_first_byte(
    tmp_path: Path, path: str, kind: str, stream: bool, answer: str, status: int, code: str | None
) -> None:
    async with (
        Upstream(answer).running() as upstream,
        serving(tmp_path, backend(kind, upstream.url)) as door,
    ):
        response, text = await ask(door, path, stream=stream)
    assert response.status == status
    assert "secret" not in text
    assert code in (None, code_of(text))
    if code == "overloaded" and kind != "ollama":
        assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", ["", "data: {nope}\n\n"], ids=["cut", "malformed"])
async def test_after_the_first_byte(tmp_path: Path, path: str, kind: str, rest: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\n{SSE}connection: close\r\n\r\n{BEGUN[kind]}"
    async with (
        Upstream(answer, rest).running() as upstream,
        serving(tmp_path, backend(kind, upstream.url)) as door,
    ):
        response, text = await ask(door, path, stream=True)
    assert response.status == 200
    assert "Hi" in text
    *_, error, cost, _ = text.split("\n\n")
    if path == "messages":
        assert error.startswith("event: error\ndata: ")
    assert code_of(error.rpartition("data: ")[2]) == "stream_interrupted"
    assert cost.startswith(": x-moyin-cost-usd=0.0000")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_silent_server_ends_at_the_deadline(
    tmp_path: Path, kind: str, stream: bool
) -> None:
    async with Upstream("", silent=True).running() as upstream:
        slow = backend(kind, upstream.url, timeout_s=0.3)
        async with serving(tmp_path, slow) as door, asyncio.timeout(3):
            response, text = await ask(door, "messages", stream=stream)
    assert response.status == 504
    assert code_of(text) == "backend_timeout"


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_there(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path, backend(kind, "http://127.0.0.1:9")) as door:
        response, text = await ask(door, "chat/completions", stream=False)
    assert response.status in (502, 503)
    assert code_of(text) in ("backend_unavailable", "service_unavailable")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"model":"m","max_tokens":5}', 400, "invalid_request", "messages"),
        (
            b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":7}]}',
            400,
            "invalid_request",
            "messages.0.content",
        ),
        (
            b'{"model":"gpt-2","max_tokens":5,"messages":[{"role":"user","content":"x"}]}',
            404,
            "model_not_found",
            "model",
        ),
    ],
)
async def test_bad_input(
    tmp_path: Path, path: str, body: bytes, status: int, code: str, field: str | None
) -> None:
    async with (
        serving(tmp_path, backend("openai", "http://127.0.0.1:9")) as door,
        aiohttp.ClientSession() as http,
    ):
        url = f"{door.url}/v1/{path}"
        headers = {"x-api-key": door.api_key}
        async with http.post(url, data=body, headers=headers) as response:
            told = await response.json()
            assert response.status == status
            assert told["request_id"] == response.headers["x-request-id"]
        async with http.post(url, data=body) as response:
            assert response.status == 401
    error = told["error"]
    assert error["code"] == code
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert error.get("field" if path == "messages" else "param") == field
    assert (told.get("type") == "error") == (path == "messages")
