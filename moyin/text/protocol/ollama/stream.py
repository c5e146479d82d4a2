"""Encodes deltas as Ollama's lines of JSON, and taps a passing stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    ToolUse,
    UsageUpdate,
)
from moyin.domain.money import Usage
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.text.protocol.ollama.response import (
    first_members,
    last_members,
    message_to_deltas,
    stop_reason,
    tool_call_to_client,
    usage_to_domain,
)

__all__ = [
    "LINES",
    "ContentEncoder",
    "LineSplitter",
    "StreamTap",
    "StreamWriter",
    "chat_members",
    "generate_members",
]

LINES = b"application/x-ndjson"
# Bounds the memory that a back end without line ends can take.
_MAX_LINE_BYTES = 16 * 1024 * 1024

# Encodes text, thinking and tool calls as the members of a stream's object.
ContentEncoder = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]


def chat_members(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Encode content as ``/api/chat`` does."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def generate_members(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Encode content as ``/api/generate`` does, which supports no tools."""
    return {"response": text, **({"thinking": thinking} if thinking else {})}


class LineSplitter:
    """Splits a byte stream into whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that ``piece`` completes, each with its end; blank ones are left out.

        Raises:
            StreamInterrupted: a line exceeds 16 MiB.
        """
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise StreamInterrupted("the back end sent a line of more than 16 MiB")
        return [line + b"\n" for line in whole if line.strip()]

    def end(self) -> list[bytes]:
        """Return the last line if the stream ended without a line end."""
        return self.feed(b"\n")


class StreamWriter:
    """Encodes the deltas of an answer as lines; tool calls are collected and sent whole."""

    def __init__(self, encode_content: ContentEncoder) -> None:
        self._encode_content = encode_content
        self._began = time.perf_counter_ns()
        self._prompt_nanoseconds = 0
        self._model = ""
        self._calls = 0
        self._open: dict[int, tuple[ToolStarted, list[str]]] = {}

    def write(self, delta: Delta) -> bytes:
        """Encode ``delta`` as lines; empty if Ollama has no line for it.

        Raises:
            InvalidToolCall: a tool call's arguments are not a JSON object.
            StreamInterrupted: arguments arrive without a tool call.
        """
        if not self._prompt_nanoseconds and isinstance(
            delta, TextDelta | ThinkingDelta | ToolStarted
        ):
            self._prompt_nanoseconds = time.perf_counter_ns() - self._began
        match delta:
            case Started():
                self._model = delta.model
                return b""
            case TextDelta():
                return self._flush() + self._line(self._encode_content(delta.text, "", []))
            case ThinkingDelta():
                if not delta.text:
                    return b""
                return self._flush() + self._line(self._encode_content("", delta.text, []))
            case ToolStarted():
                self._open[delta.index] = (delta, [])
                return b""
            case ToolArguments():
                if delta.index not in self._open:
                    raise StreamInterrupted("the back end sent arguments without a tool call")
                self._open[delta.index][1].append(delta.fragment)
                return b""
            case UsageUpdate():
                return b""
            case Finished():
                end = last_members(
                    delta.stop,
                    delta.usage,
                    nanoseconds=time.perf_counter_ns() - self._began,
                    prompt_nanoseconds=self._prompt_nanoseconds,
                )
                return self._flush() + self._line(self._encode_content("", "", []) | end)

    def _flush(self) -> bytes:
        """Encode a line with the tool calls collected so far; empty if there are none."""
        if not self._open:
            return b""
        calls = []
        for started, fragments in self._open.values():
            use = ToolUse(id=started.id, name=started.name, arguments="".join(fragments))
            calls.append(tool_call_to_client(self._calls, use))
            self._calls += 1
        self._open = {}
        return self._line(self._encode_content("", "", calls))

    def _line(self, body: Mapping[str, Any]) -> bytes:
        return to_json({**first_members(self._model), "done": False, **body}) + b"\n"


class StreamTap:
    """Passes a stream through and reads the usage from it. Ollama sends one token per line."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self.transcript: Transcript | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            StreamInterrupted: a line is malformed, or is the back end's own error.
        """
        return self._process(self._splitter.feed(piece))

    def end(self) -> bytes:
        """Return an unterminated last line.

        Ollama answers a request to load or unload a model with one object without a line end.
        """
        return self._process(self._splitter.end())

    def _process(self, lines: list[bytes]) -> bytes:
        for line in lines:
            self._inspect(_parse(line))
        return b"".join(lines)

    def _inspect(self, body: Mapping[str, Any]) -> None:
        if "error" in body:
            raise StreamInterrupted("the back end ended the stream with an error")
        message = body.get("message", body)
        if not body.get("done") and (text := _plain_text(message)) is not None:
            self.tokens += 1
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            _record(body, self.transcript)
        self.tokens += isinstance(message, dict) and any(
            message.get(name) for name in ("content", "response", "thinking", "tool_calls")
        )
        if body.get("done"):
            self.usage, self.finished = usage_to_domain(body), True


def _plain_text(message: Any) -> str | None:
    """Return the text of a line that holds nothing else, as nearly all lines do; else None."""
    if not isinstance(message, dict) or message.get("thinking") or message.get("tool_calls"):
        return None
    text = message.get("content") or message.get("response")
    return text if isinstance(text, str) and text else None


def _record(body: Mapping[str, Any], transcript: Transcript) -> None:
    """Add the content of a line of either call to ``transcript``."""
    message = body.get("message") or {
        "content": body.get("response"),
        "thinking": body.get("thinking"),
    }
    try:
        transcript.add(message_to_deltas(message, tools_before=len(transcript.tools)))
        if body.get("done"):
            stop = stop_reason(body, used_tools=bool(transcript.tools))
            transcript.add([Finished(stop=stop, usage=Usage())])
    except (KeyError, TypeError, AttributeError, ValueError):
        transcript.mark_unreadable()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = from_json(line)
    except ValueError:
        raise StreamInterrupted("the back end sent a line that is not JSON") from None
    if not isinstance(value, dict):
        raise StreamInterrupted("the back end sent a line that is not a JSON object")
    return value
