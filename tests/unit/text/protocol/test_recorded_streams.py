"""Tests that streams of ten providers give the same events, however they are split into pieces.

The recordings contain the members, comments, line ends and peculiarities of each provider's
streams.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import anthropic
import httpx
import httpx2
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.testing.backends import FakeBackend
from moyin.text.backends import ollama as ollama_backend
from moyin.text.backends.anthropic import AnthropicBackend
from moyin.text.backends.http import Endpoint, FixedEndpoint
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.backends.openai import OpenAIBackend
from moyin.text.judging.transcripts import decode_stream
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.anthropic.stream import StreamReader as AnthropicReader
from moyin.text.protocol.anthropic.stream import StreamTap as AnthropicTap
from moyin.text.protocol.codec import ProtocolCodec, StreamTap
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.ollama.stream import StreamTap as OllamaTap
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.completions import OpenAICompletionsCodec
from moyin.text.protocol.openai.stream import StreamReader as OpenAIReader
from moyin.text.protocol.openai.stream import StreamTap as OpenAITap
from moyin.text.protocol.responses.codec import ResponsesCodec
from tests.unit.text.routing.router_rig import Rig

FOLDER = Path(__file__).parent / "streams"
STREAMS = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.txt"))}
PROVIDERS = sorted(STREAMS)
MAX_PIECE = 64
CUTS = 25


@dataclass(frozen=True, kw_only=True)
class ParsedRecording:
    """The parsed content of a recording; ``tools`` holds name and arguments of each tool call."""

    text: str = ""
    thinking: str = ""
    tools: tuple[tuple[str, Any], ...] = ()
    stop: StopReason = StopReason.END
    usage: Usage = field(default_factory=Usage)


def make_weather_calls(*cities: str) -> tuple[tuple[str, Any], ...]:
    return tuple(("get_weather", {"location": city}) for city in cities)


EXPECTED = {
    "anthropic": ParsedRecording(
        text="I'll look — one moment 🌤️.",
        thinking="The user wants Köln's weather: 晴れ?",
        tools=make_weather_calls("Köln"),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=472, cached_tokens=1024, output_tokens=89),
    ),
    "azure": ParsedRecording(
        text="Grüß Gott, Welt\n\ndata: [DONE]", usage=Usage(input_tokens=14, output_tokens=9)
    ),
    "crlf": ParsedRecording(text="Zeile 1\nZeile 2 ✓"),
    "deepseek": ParsedRecording(
        text="你好呀",
        thinking="好的想一想",
        usage=Usage(input_tokens=26, output_tokens=12, reasoning_tokens=7),
    ),
    "gemini": ParsedRecording(
        text="Ich sehe nach …",
        tools=make_weather_calls("Köln", "Rom"),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=71, output_tokens=34),
    ),
    "llamacpp": ParsedRecording(
        text="Hello 世界",
        thinking="Short one.",
        stop=StopReason.MAX_TOKENS,
        usage=Usage(input_tokens=31, output_tokens=5),
    ),
    "mistral": ParsedRecording(
        text="Voyons ça.",
        thinking="Il faut la météo.",
        tools=make_weather_calls("Paris", "Nîmes"),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=94, output_tokens=37),
    ),
    "ollama": ParsedRecording(
        text="Moment, bitte ☕",
        thinking="The user fragt …",
        tools=(
            ("get_weather", {"location": "Köln"}),
            ("get_weather", {"location": "Rom", "days": [1, 2]}),
        ),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=36, output_tokens=180),
    ),
    "openai": ParsedRecording(
        text="Let me check “both” 🌍.",
        tools=make_weather_calls("Köln", "東京"),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=93, cached_tokens=1024, output_tokens=46),
    ),
    "openrouter": ParsedRecording(
        text="Natürlich!",
        thinking="Hm, ja.",
        usage=Usage(input_tokens=43, output_tokens=31, reasoning_tokens=18),
    ),
    "vllm": ParsedRecording(
        text="1, 2, ",
        thinking="Count to 3.",
        stop=StopReason.STOP_SEQUENCE,
        usage=Usage(input_tokens=36, cached_tokens=16, output_tokens=9),
    ),
}


def split_stream(stream: bytes, seed: int) -> list[bytes]:
    """Split a stream into random pieces of at most 1, 3 or 64 bytes, depending on the seed."""
    generator, longest_piece = random.Random(seed), (1, 3, MAX_PIECE)[seed % 3]
    pieces, start = [], 0
    while start < len(stream):
        end = start + generator.randint(1, longest_piece)
        pieces.append(stream[start:end])
        start = end
    return pieces


async def _iterate_pieces(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def _mock_transport(pieces: Sequence[bytes], media_type: str, library: Any) -> Any:
    """Return a mock transport of ``library`` that answers each request with these pieces.

    Args:
        media_type: the media type of the responses.
    """

    def handle(_: Any) -> Any:
        return library.Response(
            200, headers={"content-type": media_type}, content=_iterate_pieces(pieces)
        )

    return library.MockTransport(handle)


async def read_deltas(provider: str, pieces: Sequence[bytes]) -> list[Delta]:
    """Return the deltas that a back end with this provider's API reads from a stream."""
    backend: Any
    if provider == "anthropic":
        backend = AnthropicBackend(Endpoint(url="http://up", key="k"), max_connections=1)
        client = httpx2.AsyncClient(transport=_mock_transport(pieces, "text/event-stream", httpx2))
        backend._sdk = anthropic.AsyncAnthropic(
            api_key="k", base_url="http://up", max_retries=0, http_client=client
        )
    elif provider == "ollama":
        backend = OllamaBackend("http://up", contexts={"m": 4096}, max_connections=1)
        transport = _mock_transport(pieces, "application/x-ndjson", httpx)
        backend._sdk = ollama_backend._OllamaClient(host="http://up", transport=transport)
    else:
        endpoint = FixedEndpoint(Endpoint(url="http://up", key="k"))
        backend = OpenAIBackend(endpoint, max_connections=1)
        backend._http.stream = lambda *_: _iterate_pieces(pieces)
    codec = OpenAICodec()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    request = codec.parse(json.dumps(body).encode()).to_domain("m")
    deadline = asyncio.get_running_loop().time() + 30
    try:
        return [delta async for delta in backend.stream(request, deadline)]
    finally:
        await backend.close()


def summarize(deltas: Sequence[Delta]) -> ParsedRecording:
    tool_names = {d.index: d.name for d in deltas if isinstance(d, ToolStarted)}
    arguments = {
        index: "".join(
            d.fragment for d in deltas if isinstance(d, ToolArguments) and d.index == index
        )
        for index in tool_names
    }
    last_delta = deltas[-1]
    assert isinstance(deltas[0], Started) and isinstance(last_delta, Finished)
    return ParsedRecording(
        text="".join(d.text for d in deltas if isinstance(d, TextDelta)),
        thinking="".join(d.text for d in deltas if isinstance(d, ThinkingDelta)),
        tools=tuple((tool_names[index], json.loads(arguments[index])) for index in tool_names),
        stop=last_delta.stop,
        usage=last_delta.usage,
    )


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_stream_is_parsed_equally_for_any_split(provider: str) -> None:
    whole_deltas = await read_deltas(provider, [STREAMS[provider]])
    assert summarize(whole_deltas) == EXPECTED[provider]
    for seed in range(CUTS):
        pieces = split_stream(STREAMS[provider], seed)
        assert [_drop_id(d) for d in await read_deltas(provider, pieces)] == [
            _drop_id(d) for d in whole_deltas
        ], seed


def _drop_id(delta: Delta) -> Delta:
    """Return ``delta`` without its id, because the gateway generates ids for Ollama's streams."""
    return replace(delta, id="") if isinstance(delta, Started | ToolStarted) else delta


TAPS: dict[str, Callable[[], StreamTap]] = {
    "anthropic": AnthropicTap,
    "ollama": lambda: OllamaTap("qwen3:8b"),
}


# Azure's events about filtered content, and tool calls of Mistral, lack members that OpenAI requires;
# tool calls of Gemini have all the same index, and end with `stop`.
REPAIRED = ("azure", "gemini", "mistral")
# Members whose values are corrected; what OpenAI's SDK makes of them has a test of its own.
CORRECTED = ("index", "finish_reason")


def contains_event(received_event: bytes, sent_event: bytes) -> bool:
    """Return True if the received event has at least the members of the sent event."""
    if received_event == sent_event:
        return True
    return _has_members(
        json.loads(received_event.removeprefix(b"data: ")),
        json.loads(sent_event.removeprefix(b"data: ")),
    )


def _has_members(actual_value: Any, members: Any) -> bool:
    if isinstance(members, dict):
        return all(
            name in actual_value and (name in CORRECTED or _has_members(actual_value[name], member))
            for name, member in members.items()
        )
    if isinstance(members, list):
        return len(actual_value) == len(members) and all(map(_has_members, actual_value, members))
    return bool(actual_value == members) or members == ""


def _create_tap(provider: str, *, hide_usage: bool) -> StreamTap:
    if provider in TAPS:
        return TAPS[provider]()
    return OpenAITap(hide_usage=hide_usage, hide_progress=hide_usage)


def forward_stream(tap: StreamTap, pieces: Iterable[bytes]) -> bytes:
    return b"".join([*map(tap.feed, pieces), tap.flush()])


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_forwarded_stream_is_the_same_however_it_is_cut(provider: str, hide_usage: bool) -> None:
    stream, recording = STREAMS[provider], EXPECTED[provider]
    first_tap = _create_tap(provider, hide_usage=hide_usage)
    transcript = first_tap.transcript = Transcript()
    whole_stream = forward_stream(first_tap, [stream])
    assert first_tap.is_finished and transcript.is_readable
    assert (transcript.text, transcript.stop) == (recording.text, recording.stop)
    assert (first_tap.usage or Usage()) == recording.usage
    if not hide_usage:
        end_marker = b"" if b"[DONE]" in stream or provider in TAPS else b"data: [DONE]\n\n"
        sent_stream = stream.replace(b"\r\n", b"\n") + end_marker
        if provider in REPAIRED:
            pairs = zip(whole_stream.split(b"\n\n"), sent_stream.split(b"\n\n"), strict=True)
            assert all(contains_event(*pair) for pair in pairs) and whole_stream != sent_stream
        else:
            assert whole_stream == sent_stream
    for seed in range(CUTS):
        tap = _create_tap(provider, hide_usage=hide_usage)
        tap.transcript = Transcript()
        assert forward_stream(tap, split_stream(stream, seed)) == whole_stream, seed
        assert (tap.usage, tap.tokens) == (first_tap.usage, first_tap.tokens), seed
        assert tap.transcript.text == transcript.text, seed


REASONS = {
    StopReason.END: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_TOKENS: "length",
    StopReason.TOOL_USE: "tool_calls",
}


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in TAPS])
def test_openais_sdk_reads_a_forwarded_stream(provider: str) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    received_bytes = forward_stream(_create_tap(provider, hide_usage=False), [STREAMS[provider]])
    for event in received_bytes.split(b"\n\n"):
        event_data = event.partition(b"data: ")[2]
        if event_data in (b"", b"[DONE]"):
            continue
        chunk = json.loads(event_data)
        for choice in chunk["choices"]:
            if isinstance(choice["delta"].get("content"), list):
                # The parts of Mistral's thinking models are no content of OpenAI's.
                del choice["delta"]["content"]
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    (answer,) = state.current_completion_snapshot.choices
    tool_calls = answer.message.tool_calls or ()
    functions = [call.function for call in tool_calls if call.type == "function"]
    recording = EXPECTED[provider]
    assert [(f.name, json.loads(f.arguments)) for f in functions] == list(recording.tools)
    assert len({call.id for call in tool_calls}) == len(recording.tools)
    assert answer.finish_reason == REASONS[recording.stop]


CLIENTS: dict[str, tuple[ProtocolCodec, dict[str, Any]]] = {
    "openai": (OpenAICodec(), {"messages": [{"role": "user", "content": "hi"}]}),
    "completions": (OpenAICompletionsCodec(), {"prompt": "hi"}),
    "anthropic": (
        AnthropicCodec(),
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    ),
    "responses": (ResponsesCodec(), {"input": "hi"}),
    "ollama": (OllamaChatCodec(), {"messages": [{"role": "user", "content": "hi"}]}),
    "generate": (OllamaGenerateCodec(), {"prompt": "hi"}),
}


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_each_client_gets_the_content_of_the_stream(provider: str, protocol: str) -> None:
    codec, body = CLIENTS[protocol]
    request = codec.parse(json.dumps({"model": "m", "stream": True, **body}).encode())
    recording, pieces = EXPECTED[provider], split_stream(STREAMS[provider], 2)
    writer = request.create_stream_writer()
    answer = decode_stream(
        codec, b"".join([writer.write(d) for d in await read_deltas(provider, pieces)])
    )
    assert answer.text == recording.text
    if protocol not in ("completions", "generate"):
        parts = [part for part in answer.parts if isinstance(part, ToolUse)]
        calls = [(part.name, json.loads(part.arguments)) for part in parts]
        assert calls == list(recording.tools)


@pytest.mark.parametrize("protocol", ["openai", "anthropic", "responses", "ollama"])
def test_interleaved_tool_calls_stay_separate(protocol: str) -> None:
    calls = make_weather_calls("Köln", "Rom", "Paris")
    pieces: dict[int, list[str]] = {
        index: [text[start : start + 6] for start in range(0, len(text), 6)]
        for index, text in enumerate(json.dumps(arguments) for _, arguments in calls)
    }
    codec, body = CLIENTS[protocol]
    for seed in range(CUTS):
        generator = random.Random(seed)
        deltas: list[Delta] = [Started(id="a", model="m")]
        start_deltas = [
            ToolStarted(index=i, id=f"c{i}", name=name) for i, (name, _) in enumerate(calls)
        ]
        remaining_pieces = {index: list(fragments) for index, fragments in pieces.items()}
        while start_deltas or any(remaining_pieces.values()):
            index = generator.randrange(len(calls))
            if start_deltas and index >= len(calls) - len(start_deltas):
                deltas.append(start_deltas.pop(0))
            elif remaining_pieces[index]:
                deltas.append(ToolArguments(index=index, fragment=remaining_pieces[index].pop(0)))
        deltas.append(Finished(stop=StopReason.TOOL_USE, usage=Usage(output_tokens=9)))
        request = codec.parse(json.dumps({"model": "m", "stream": True, **body}).encode())
        writer = request.create_stream_writer()
        answer = decode_stream(codec, b"".join(map(writer.write, deltas)))
        parts = [part for part in answer.parts if isinstance(part, ToolUse)]
        assert tuple((p.name, json.loads(p.arguments)) for p in parts) == calls, seed


def test_streams_that_are_read_alternately_do_not_mix() -> None:
    generator = random.Random(7)
    providers = [provider for provider in PROVIDERS if provider != "ollama"]
    readers: dict[str, Any] = {
        provider: AnthropicReader() if provider == "anthropic" else OpenAIReader()
        for provider in providers
    }
    remaining_pieces = {provider: split_stream(STREAMS[provider], 2) for provider in providers}
    deltas: dict[str, list[Delta]] = {provider: [] for provider in providers}
    while remaining_pieces:
        provider = generator.choice(sorted(remaining_pieces))
        deltas[provider] += readers[provider].feed(remaining_pieces[provider].pop(0))
        if not remaining_pieces[provider]:
            del remaining_pieces[provider]
    for provider, reader in readers.items():
        flushed_deltas = reader.flush() if isinstance(reader, OpenAIReader) else []
        assert summarize([*deltas[provider], *flushed_deltas]) == EXPECTED[provider]


# An error within a stream has a choice at OpenRouter, none elsewhere.
_ERRORS = (
    {"id": "gen-1", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
     "error": {"code": 502, "message": "provider disconnected"}},
    {"id": "gen-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
    {"error": {"message": "overloaded", "type": "server_error"}},
)  # fmt: skip


@pytest.mark.parametrize("error", _ERRORS)
def test_error_event_interrupts_the_stream(error: dict[str, Any]) -> None:
    event = b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n"
    with pytest.raises(StreamInterrupted):
        OpenAIReader().feed(event)
    with pytest.raises(StreamInterrupted):
        OpenAITap(hide_usage=True).feed(event)


async def test_event_that_is_not_json_ends_every_stream() -> None:
    """The stream fails, translated or forwarded; if it fails at its start, another back end answers."""
    broken_event = b"data: {nope}\n\n"
    for api in ("openai", "anthropic"):
        with pytest.raises(Exception) as exc_info:
            await read_deltas(api, [broken_event])
        assert getattr(exc_info.value, "code", "") in ("stream_interrupted", "backend_unavailable")
    for tap in (OpenAITap(hide_usage=True), AnthropicTap()):
        with pytest.raises(StreamInterrupted):
            tap.feed(broken_event)
    rig = Rig(FakeBackend(raw_stream=[broken_event]), FakeBackend(raw_stream=[STREAMS["openai"]]))
    answer = await rig.ask(stream=True)
    assert dict(cast(Any, answer.headers))[b"x-moyin-backend"] == b"b1"
    await answer.close()
