"""Tests that after malformed JSON the router falls back, or the stream ends with an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from moyin.testing.backends import FakeBackend
from moyin.text.backends.anthropic import AnthropicBackend
from moyin.text.backends.http import Endpoint, FixedEndpoint
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.backends.openai import OpenAIBackend
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from tests.integration.text.upstreams import BEGUN, SSE, Upstream
from tests.unit.text.routing.router_rig import CHUNK, DONE, RAW, Rig, read_stream

# None is read in its own back end's protocol, where bytes pass.
CLIENTS: dict[str, ProtocolCodec] = {
    "anthropic": OpenAICodec(),
    "ollama": OpenAICodec(),
    "openai": AnthropicCodec(),
}
ODD = ["[1]", "5", "null", '"x"', "{}"]
EVENTS = {
    "anthropic": [
        *(f"event: content_block_delta\ndata: {odd}\n\n" for odd in ODD),
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":5}\n\n',
    ],
    "ollama": [*(f"{odd}\n" for odd in ODD), '{"message":{"role":"a","content":5}}\n'],
    "openai": [
        *(f"data: {odd}\n\n" for odd in ODD[:-1]),
        *(
            f"data: {{{choices}}}\n\n"
            for choices in (
                '"choices":5',
                '"choices":[{"delta":{"content":5}}]',
                '"choices":[{"delta":{"reasoning":["x"]}}]',
                '"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":null}}]}}]',
                '"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"f",'
                '"arguments":5}}]}}]',
            )
        ),
    ],
}
WHOLE = {
    "anthropic": ['{"id":"1","model":"m","content":[{"type":"text","text":5}],"usage":{}}'],
    "ollama": ['{"message":{"role":"a","content":5}}'],
    "openai": [
        '{"choices":[{"message":{"tool_calls":[{"id":1,"function":{"name":"f","arguments":5}}]}}]}'
    ],
}


@asynccontextmanager
async def run_backend(
    api_format: str, response: str, delayed_response: str = ""
) -> AsyncIterator[FakeBackend]:
    async with Upstream(response, delayed_response).running() as upstream:
        url = upstream.url
        backend: AnthropicBackend | OllamaBackend | OpenAIBackend
        match api_format:
            case "anthropic":
                backend = AnthropicBackend(Endpoint(url=url, key="k"), max_connections=4)
            case "ollama":
                backend = OllamaBackend(url, contexts={"up": 4096}, max_connections=4)
            case _:
                backend = OpenAIBackend(FixedEndpoint(Endpoint(url=url)), max_connections=4)
        yield cast(FakeBackend, backend)
        await backend.close()


def make_json_response(body: str) -> str:
    headers = f"content-type: application/json\r\ncontent-length: {len(body)}"
    return f"HTTP/1.1 200 OK\r\n{headers}\r\nconnection: close\r\n\r\n{body}"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("api_format", "body"), [(kind, body) for kind in CLIENTS for body in (*ODD, *WHOLE[kind])]
)
async def test_malformed_whole_response_falls_back(api_format: str, body: str) -> None:
    async with run_backend(api_format, make_json_response(body)) as broken_backend:
        other_backend = FakeBackend(raw=RAW)
        answer = await Rig(broken_backend, other_backend).ask(CLIENTS[api_format])
        assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("api_format", "event"), [(kind, event) for kind, events in EVENTS.items() for event in events]
)
async def test_malformed_event_falls_back_or_ends_the_stream(api_format: str, event: str) -> None:
    async with run_backend(api_format, SSE + event) as broken_backend:
        answer = await Rig(broken_backend, FakeBackend(raw_stream=[CHUNK, DONE])).ask(
            CLIENTS[api_format], stream=True
        )
        await read_stream(answer)
        assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"
    async with run_backend(api_format, BEGUN[api_format], event) as broken_backend:
        rig = Rig(broken_backend)
        stream_bytes = await read_stream(await rig.ask(CLIENTS[api_format], stream=True))
        assert b"Hi" in stream_bytes and b'"code":"stream_interrupted"' in stream_bytes
        assert [entry.complete for entry in rig.ledger] == [False]


async def test_malformed_event_ends_a_forwarded_stream() -> None:
    async with run_backend("openai", BEGUN["openai"], EVENTS["openai"][4]) as broken_backend:
        stream_bytes = await read_stream(await Rig(broken_backend).ask(OpenAICodec(), stream=True))
        assert b"Hi" in stream_bytes and b'"code":"stream_interrupted"' in stream_bytes
