"""Tests that token probabilities are translated between every protocol and back end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from moyin.domain.chat import ChatRequest, ChatResponse, TextDelta
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.testing.ollama_host import FakeOllamaHost
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.protocol.anthropic.request_to_upstream import (
    chat_request_to_upstream as to_anthropic,
)
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream as to_openai
from moyin.text.protocol.openai.response import chat_response_to_domain as from_openai
from moyin.text.protocol.openai.stream import StreamReader
from moyin.text.protocol.responses.codec import ResponsesCodec

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
REQUESTS: dict[str, tuple[ProtocolCodec, dict[str, Any]]] = {
    "openai": (OpenAICodec(), {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "chat": (OllamaChatCodec(), {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "generate": (
        OllamaGenerateCodec(),
        {"model": "m", "prompt": "Hi", "logprobs": True, "top_logprobs": 2},
    ),
    "responses": (
        ResponsesCodec(),
        {
            "model": "m",
            "input": "Hi",
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
        },
    ),
}
TOKEN = {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}
OTHER = {"token": "Yo", "logprob": -1.5, "bytes": [89, 111]}
EXPECTED = [{**TOKEN, "top_logprobs": [TOKEN, OTHER]}]


def parse_request(protocol: str, **members: Any) -> ParsedRequest:
    codec, body = REQUESTS[protocol]
    return codec.parse(json.dumps({**body, **members}).encode())


def translate_request(protocol: str, **members: Any) -> ChatRequest:
    request = parse_request(protocol, **members).to_domain("smollm2")
    assert isinstance(request, ChatRequest)
    return request


@pytest.fixture
async def backend() -> AsyncIterator[OllamaBackend]:
    async with FakeOllamaHost().running() as host:
        backend = OllamaBackend(host.url, contexts={}, max_connections=2)
        yield backend
        await backend.close()


def make_deadline() -> float:
    return asyncio.get_running_loop().time() + 5


def read_client_logprobs(protocol: str, body: dict[str, Any]) -> Any:
    if protocol == "openai":
        return body["choices"][0]["logprobs"]["content"]
    if protocol == "responses":
        return body["output"][0]["content"][0]["logprobs"]
    return body["logprobs"]


@pytest.mark.parametrize("protocol", REQUESTS)
async def test_whole_ollama_answer_contains_logprobs(protocol: str, backend: OllamaBackend) -> None:
    answer = await backend.chat(translate_request(protocol), make_deadline())
    body = json.loads(parse_request(protocol).encode_response(answer))
    assert read_client_logprobs(protocol, body) == EXPECTED


@pytest.mark.parametrize("protocol", REQUESTS)
async def test_streamed_ollama_answer_contains_logprobs(
    protocol: str, backend: OllamaBackend
) -> None:
    writer = parse_request(protocol, stream=True).create_stream_writer()
    deltas = backend.stream(translate_request(protocol, stream=True), make_deadline())
    stream_text = b"".join([writer.write(delta) async for delta in deltas]).decode()
    lines = [line.removeprefix("data: ") for line in stream_text.splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    if protocol == "openai":
        choice_logprobs = [event["choices"][0]["logprobs"] for event in events if event["choices"]]
        event_logprobs = [logprobs["content"] for logprobs in choice_logprobs if logprobs]
    elif protocol == "responses":
        event_types = ("response.output_text.delta", "response.output_text.done")
        event_logprobs = [event["logprobs"] for event in events if event["type"] in event_types]
        assert read_client_logprobs(protocol, events[-1]["response"]) == EXPECTED
        assert len(event_logprobs) == 2
    else:
        event_logprobs = [event["logprobs"] for event in events if "logprobs" in event]
    assert event_logprobs and all(token_logprobs == EXPECTED for token_logprobs in event_logprobs)


@pytest.mark.parametrize("protocol", REQUESTS)
def test_logprobs_are_requested_from_openai_and_refused_for_claude(protocol: str) -> None:
    request = translate_request(protocol)
    body = to_openai(request, stream=False)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    with pytest.raises(UnsupportedFeature) as exc_info:
        to_anthropic(request)
    assert exc_info.value.field == "logprobs"


def test_openai_answers_contain_logprobs() -> None:
    choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": EXPECTED}}
    answer = from_openai({"choices": [{**choice, "message": {"content": "Hi"}}]})
    assert isinstance(answer, ChatResponse)
    assert json.loads(parse_request("chat").encode_response(answer))["logprobs"] == EXPECTED
    event = json.dumps({"choices": [{**choice, "delta": {"content": "Hi"}}]})
    (delta,) = (
        delta
        for delta in StreamReader().feed(f"data: {event}\n\n".encode())
        if isinstance(delta, TextDelta)
    )
    assert delta.logprobs == answer.logprobs != ()


def test_answers_without_logprobs_have_null_or_no_member() -> None:
    answer = from_openai(
        {"choices": [{"message": {"content": "Hi"}, "logprobs": None, "finish_reason": "stop"}]}
    )
    assert (
        json.loads(parse_request("openai").encode_response(answer))["choices"][0]["logprobs"]
        is None
    )
    assert "logprobs" not in json.loads(parse_request("chat").encode_response(answer))


@pytest.mark.parametrize(
    "members", [{"logprobs": False, "top_logprobs": 1}, {"top_logprobs": 21}, {"top_logprobs": -1}]
)
@pytest.mark.parametrize("protocol", ["openai", "chat", "generate"])
def test_impossible_numbers_of_alternatives_are_refused(
    protocol: str, members: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        translate_request(protocol, **members)
    assert exc_info.value.field == "top_logprobs"
