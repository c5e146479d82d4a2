"""Tests the transcripts that stream taps record from the events of forwarded streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from moyin.domain.chat import Finished, StopReason
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.text.protocol.anthropic.stream import StreamTap as AnthropicTap
from moyin.text.protocol.codec import StreamTap
from moyin.text.protocol.ollama.stream import StreamTap as OllamaTap
from moyin.text.protocol.openai.stream import StreamReader
from moyin.text.protocol.openai.stream import StreamTap as OpenAITap


def encode_openai_event(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def encode_anthropic_event(event_type: str, **members: Any) -> bytes:
    return f"event: {event_type}\ndata: {json.dumps({'type': event_type, **members})}\n\n".encode()


def encode_content_event(**delta: Any) -> bytes:
    return encode_anthropic_event("content_block_delta", index=0, delta=delta)


def encode_ollama_line(is_done: bool = False, **message: Any) -> bytes:
    body = {"message": {"role": "assistant", **message}, "done": is_done}
    return json.dumps(body | ({"done_reason": "stop"} if is_done else {})).encode() + b"\n"


STREAMS: dict[str, tuple[StreamTap, list[bytes], int]] = {
    "openai": (
        OpenAITap(hide_usage=True),
        [
            encode_openai_event({"role": "assistant", "content": ""}),
            encode_openai_event({"reasoning_content": "so"}),
            encode_openai_event({"content": "Hello "}),
            encode_openai_event({"content": "there"}),
            encode_openai_event({"content": "!"}, "stop"),
            b"data: [DONE]\n\n",
        ],
        4,
    ),
    "anthropic": (
        AnthropicTap(),
        [
            encode_content_event(type="thinking_delta", thinking="so"),
            encode_content_event(type="text_delta", text="Hello "),
            encode_content_event(type="text_delta", text="there"),
            encode_content_event(type="text_delta", text="!"),
            encode_anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage={}),
            encode_anthropic_event("message_stop"),
        ],
        4,
    ),
    "ollama": (
        OllamaTap("m"),
        [
            encode_ollama_line(content="", thinking="so"),
            encode_ollama_line(content="Hello "),
            encode_ollama_line(content="there"),
            encode_ollama_line(content="!", is_done=True),
        ],
        4,
    ),
}


@pytest.mark.parametrize("protocol", STREAMS)
def test_text_and_thinking_are_recorded_and_counted(protocol: str) -> None:
    tap, events, token_count = STREAMS[protocol]
    transcript = tap.transcript = Transcript()
    assert b"".join(tap.feed(event) for event in events) == b"".join(events)
    assert (transcript.text, transcript.has_thinking, transcript.is_readable) == (
        "Hello there!",
        True,
        True,
    )
    assert transcript.stop is StopReason.END
    assert tap.is_finished
    assert tap.tokens == token_count


def test_ollama_event_with_text_and_tool_call_records_both() -> None:
    tap = OllamaTap("m")
    transcript = tap.transcript = Transcript()
    tool_call = {"function": {"name": "look", "arguments": {}}}
    tap.feed(encode_ollama_line(content="Wait", tool_calls=[tool_call]))
    assert (transcript.text, list(transcript.tools)) == ("Wait", ["look"])


def test_text_that_is_not_a_string_is_unreadable() -> None:
    for tap, event in (
        (OpenAITap(hide_usage=True), encode_openai_event({"content": 3})),
        (AnthropicTap(), encode_content_event(type="text_delta", text=3)),
    ):
        transcript = tap.transcript = Transcript()
        tap.feed(event)
        assert not transcript.is_readable


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_stream_without_done_is_complete_once_its_choice_has_a_finish_reason(
    ending: bytes,
) -> None:
    stream = encode_openai_event({"content": "Hello"}) + encode_openai_event({}, "stop")
    tap = OpenAITap(hide_usage=True)
    transcript = tap.transcript = Transcript()
    passed_bytes = tap.feed(stream.rstrip() + ending) + tap.flush()
    assert passed_bytes == stream + b"data: [DONE]\n\n"
    assert (tap.is_finished, transcript.stop) == (True, StopReason.END)
    reader = StreamReader()
    read_deltas = reader.feed(stream.rstrip() + ending) + reader.flush()
    assert (reader.is_finished, type(read_deltas[-1])) == (True, Finished)


def test_stream_with_done_finishes_once() -> None:
    tap, reader = OpenAITap(hide_usage=True), StreamReader()
    stream = encode_openai_event({"content": "Hello"}, "stop") + b"data: [DONE]"
    assert tap.feed(stream) + tap.flush() == stream + b"\n\n"
    read_deltas = reader.feed(stream) + reader.flush()
    assert sum(isinstance(delta, Finished) for delta in read_deltas) == 1


def test_stream_is_incomplete_until_every_choice_has_a_finish_reason() -> None:
    tap, reader = OpenAITap(hide_usage=True), StreamReader()
    tap.feed(encode_openai_event({"content": "Hello"}))
    reader.feed(encode_openai_event({"content": "Hello"}))
    assert (tap.flush(), reader.flush()) == (b"", [])
    assert not tap.is_finished and not reader.is_finished
    tap_of_two_choices = OpenAITap(hide_usage=True, choice_count=2)
    tap_of_two_choices.feed(encode_openai_event({"content": "Hello"}, "stop"))
    assert tap_of_two_choices.flush() == b"" and not tap_of_two_choices.is_finished


def test_stream_that_ends_within_an_event_is_interrupted() -> None:
    for stream_reader, partial_event in (
        (OpenAITap(hide_usage=True), b'data: {"choices":['),
        (StreamReader(), b'data: {"choices":['),
        (AnthropicTap(), b'event: message_stop\ndata: {"type":'),
        (OllamaTap("m"), b'{"done":tr'),
    ):
        stream_reader.feed(partial_event)
        with pytest.raises(StreamInterrupted):
            stream_reader.flush()


@pytest.mark.parametrize("protocol", ["anthropic", "ollama"])
def test_last_event_may_lack_its_terminator(protocol: str) -> None:
    taps: dict[str, tuple[bytes, AnthropicTap | OllamaTap]] = {
        "anthropic": (encode_anthropic_event("message_stop"), AnthropicTap()),
        "ollama": (encode_ollama_line(content="", is_done=True), OllamaTap("m")),
    }
    last_event, tap = taps[protocol]
    assert tap.feed(last_event.rstrip(b"\n")) == b""
    assert tap.flush() == last_event
    assert tap.is_finished
