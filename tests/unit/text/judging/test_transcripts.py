"""Tests the transcripts of conversations and answers, streamed and not, in every protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic_core import from_json

from moyin.domain.chat import ChatRequest, StopReason, Text, Thinking, ToolUse
from moyin.errors import UnsupportedFeature
from moyin.testing.backends import make_text_response, split_into_deltas
from moyin.text.judging.transcripts import decode_stream, format_answer, format_conversation
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.completions import OpenAICompletionsCodec

CODECS: list[ProtocolCodec] = [
    OpenAICodec(),
    AnthropicCodec(),
    OllamaChatCodec(),
    OllamaGenerateCodec(),
    OpenAICompletionsCodec(),
]
MESSAGES = [{"role": "user", "content": "hello"}]


def make_body(codec: ProtocolCodec, **members: Any) -> bytes:
    prompt_members: dict[str, Any] = {"prompt": "hello"}
    if not isinstance(codec, OllamaGenerateCodec | OpenAICompletionsCodec):
        prompt_members = {"messages": MESSAGES}
    if isinstance(codec, AnthropicCodec):
        prompt_members["max_tokens"] = 9
    return json.dumps({"model": "m", **prompt_members, **members}).encode()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_a_stream_reads_like_the_whole_answer(codec: ProtocolCodec) -> None:
    answer = make_text_response("some words in a row")
    parsed_request = codec.parse(make_body(codec, stream=True))
    writer = parsed_request.create_stream_writer()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    streamed_answer = decode_stream(codec, stream)
    assert (format_answer(streamed_answer), streamed_answer.stop) == (
        "some words in a row",
        StopReason.END,
    )
    whole_answer = codec.read_response(from_json(parsed_request.encode_response(answer)))
    assert format_answer(whole_answer) == format_answer(streamed_answer)


@pytest.mark.parametrize("codec", CODECS[:3], ids=lambda codec: type(codec).__name__)
def test_transcript_has_tool_calls_but_no_reasoning(codec: ProtocolCodec) -> None:
    plain_answer = make_text_response("look")
    tool_use = ToolUse(id="c1", name="weather", arguments='{"city":"Ulm"}')
    parts = (Thinking(text="hidden"), *plain_answer.parts, tool_use)
    fields = {name: getattr(plain_answer, name) for name in type(plain_answer).__dataclass_fields__}
    answer = type(plain_answer)(**{**fields, "parts": parts, "stop": StopReason.TOOL_USE})
    parsed_request = codec.parse(make_body(codec, stream=True))
    writer = parsed_request.create_stream_writer()
    stream = b"".join(writer.write(delta) for delta in split_into_deltas(answer))
    transcript = 'look\n[calls the tool weather with {"city":"Ulm"}]'
    assert format_answer(decode_stream(codec, stream)) == transcript
    assert format_answer(answer) == transcript


def test_transcript_has_all_parts_of_the_conversation() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "description": "Weather."}}],
    }
    request = OpenAICodec().parse(json.dumps(body).encode()).to_domain("m")
    assert isinstance(request, ChatRequest)
    assert format_conversation(request) == (
        "SYSTEM:\nBe brief.\n\nTOOL w: Weather.\n\nUSER:\nWeather?\n\n"
        "ASSISTANT:\n[calls the tool w with {}]\n\nUSER:\n[the tool returned]\nrain"
    )


def test_pictures_are_rejected() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    body = {"model": "m", "messages": [{"role": "user", "content": [picture]}]}
    request = OpenAICodec().parse(json.dumps(body).encode()).to_domain("m")
    assert isinstance(request, ChatRequest)
    with pytest.raises(UnsupportedFeature):
        format_conversation(request)


def test_text_parts_are_joined() -> None:
    answer = make_text_response("a")
    fields = {name: getattr(answer, name) for name in type(answer).__dataclass_fields__}
    answer_of_two_parts = type(answer)(**{**fields, "parts": (Text(text="a"), Text(text="b"))})
    assert format_answer(answer_of_two_parts) == "ab"
