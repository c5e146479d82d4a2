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


def openai(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def anthropic(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def block(**delta: Any) -> bytes:
    return anthropic("content_block_delta", index=0, delta=delta)


def line(done: bool = False, **message: Any) -> bytes:
    body = {"message": {"role": "assistant", **message}, "done": done}
    return json.dumps(body | ({"done_reason": "stop"} if done else {})).encode() + b"\n"


STREAMS: dict[str, tuple[StreamTap, list[bytes], int]] = {
    "openai": (
        OpenAITap(hide_usage=True),
        [
            openai({"role": "assistant", "content": ""}),
            openai({"reasoning_content": "so"}),
            openai({"content": "Hello "}),
            openai({"content": "there"}),
            openai({"content": "!"}, "stop"),
            b"data: [DONE]\n\n",
        ],
        4,
    ),
    "anthropic": (
        AnthropicTap(),
        [
            block(type="thinking_delta", thinking="so"),
            block(type="text_delta", text="Hello "),
            block(type="text_delta", text="there"),
            block(type="text_delta", text="!"),
            anthropic("message_delta", delta={"stop_reason": "end_turn"}, usage={}),
            anthropic("message_stop"),
        ],
        4,
    ),
    "ollama": (
        OllamaTap("m"),
        [
            line(content="", thinking="so"),
            line(content="Hello "),
            line(content="there"),
            line(content="!", done=True),
        ],
        4,
    ),
}


@pytest.mark.parametrize("protocol", STREAMS)
def test_text_and_thinking_are_recorded_and_counted(protocol: str) -> None:
    tap, events, tokens = STREAMS[protocol]
    transcript = tap.transcript = Transcript()
    assert b"".join(tap.feed(event) for event in events) == b"".join(events)
    assert (transcript.text, transcript.has_thinking, transcript.is_readable) == (
        "Hello there!",
        True,
        True,
    )
    assert transcript.stop is StopReason.END
    assert tap.is_finished
    assert tap.tokens == tokens


def test_ollama_event_with_text_and_tool_call_records_both() -> None:
    tap = OllamaTap("m")
    transcript = tap.transcript = Transcript()
    call = {"function": {"name": "look", "arguments": {}}}
    tap.feed(line(content="Wait", tool_calls=[call]))
    assert (transcript.text, list(transcript.tools)) == ("Wait", ["look"])


def test_text_that_is_not_a_string_is_unreadable() -> None:
    for tap, event in (
        (OpenAITap(hide_usage=True), openai({"content": 3})),
        (AnthropicTap(), block(type="text_delta", text=3)),
    ):
        transcript = tap.transcript = Transcript()
        tap.feed(event)
        assert not transcript.is_readable


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_stream_without_done_is_complete_once_its_choice_has_a_finish_reason(
    ending: bytes,
) -> None:
    whole = openai({"content": "Hello"}) + openai({}, "stop")
    tap = OpenAITap(hide_usage=True)
    transcript = tap.transcript = Transcript()
    passed = tap.feed(whole.rstrip() + ending) + tap.flush()
    assert passed == whole + b"data: [DONE]\n\n"
    assert (tap.is_finished, transcript.stop) == (True, StopReason.END)
    reader = StreamReader()
    read = reader.feed(whole.rstrip() + ending) + reader.flush()
    assert (reader.is_finished, type(read[-1])) == (True, Finished)


def test_stream_with_done_finishes_once() -> None:
    tap, reader = OpenAITap(hide_usage=True), StreamReader()
    whole = openai({"content": "Hello"}, "stop") + b"data: [DONE]"
    assert tap.feed(whole) + tap.flush() == whole + b"\n\n"
    read = reader.feed(whole) + reader.flush()
    assert sum(isinstance(delta, Finished) for delta in read) == 1


def test_stream_is_incomplete_until_every_choice_has_a_finish_reason() -> None:
    tap, reader = OpenAITap(hide_usage=True), StreamReader()
    tap.feed(openai({"content": "Hello"}))
    reader.feed(openai({"content": "Hello"}))
    assert (tap.flush(), reader.flush()) == (b"", [])
    assert not tap.is_finished and not reader.is_finished
    two = OpenAITap(hide_usage=True, choices=2)
    two.feed(openai({"content": "Hello"}, "stop"))
    assert two.flush() == b"" and not two.is_finished


def test_stream_that_ends_within_an_event_is_interrupted() -> None:
    for ends, half in (
        (OpenAITap(hide_usage=True), b'data: {"choices":['),
        (StreamReader(), b'data: {"choices":['),
        (AnthropicTap(), b'event: message_stop\ndata: {"type":'),
        (OllamaTap("m"), b'{"done":tr'),
    ):
        ends.feed(half)
        with pytest.raises(StreamInterrupted):
            ends.flush()


@pytest.mark.parametrize("protocol", ["anthropic", "ollama"])
def test_last_event_may_lack_its_terminator(protocol: str) -> None:
    taps: dict[str, tuple[bytes, AnthropicTap | OllamaTap]] = {
        "anthropic": (anthropic("message_stop"), AnthropicTap()),
        "ollama": (line(content="", done=True), OllamaTap("m")),
    }
    last, tap = taps[protocol]
    assert tap.feed(last.rstrip(b"\n")) == b""
    assert tap.flush() == last
    assert tap.is_finished
