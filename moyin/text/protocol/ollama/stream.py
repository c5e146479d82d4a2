"""Streams: deltas to Ollama's lines of JSON, and the tap on a passing stream."""

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
    call_body,
    deltas_of,
    final,
    head,
    stop_of,
    usage_of,
)

__all__ = ["LINES", "LineSplitter", "Saying", "StreamTap", "StreamWriter", "in_chat", "in_generate"]

LINES = b"application/x-ndjson"
# An upstream that never ends a line must not fill our memory.
_LONGEST_LINE = 16 * 1024 * 1024

# How an object of a stream says text, thinking and tool calls.
Saying = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]


def in_chat(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """As ``/api/chat`` does."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def in_generate(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """As ``/api/generate`` does, which can be given no tools."""
    return {"response": text, **({"thinking": thinking} if thinking else {})}


class LineSplitter:
    """Cuts a byte stream into whole lines, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that ``piece`` completes, each with its end; blank ones are left out.

        Raises:
            StreamInterrupted: a line exceeds 16 MiB.
        """
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise StreamInterrupted("the back end sent a line of more than 16 MiB")
        return [line + b"\n" for line in whole if line.strip()]

    def end(self) -> list[bytes]:
        """Return the last line, where the stream ended without a line end."""
        return self.feed(b"\n")


class StreamWriter:
    """Writes one answer's deltas as lines. Tool calls are gathered: Ollama sends them whole."""

    def __init__(self, saying: Saying) -> None:
        self._saying = saying
        self._began = time.perf_counter_ns()
        self._reading = 0
        self._model = ""
        self._calls = 0
        self._open: dict[int, tuple[ToolStarted, list[str]]] = {}

    def write(self, delta: Delta) -> bytes:
        """The lines that say ``delta``; empty where Ollama has no word for it.

        Raises:
            InvalidToolCall: a tool call's arguments are no object.
            StreamInterrupted: arguments come for no call.
        """
        if not self._reading and isinstance(delta, TextDelta | ThinkingDelta | ToolStarted):
            self._reading = time.perf_counter_ns() - self._began
        match delta:
            case Started():
                self._model = delta.model
                return b""
            case TextDelta():
                return self._flush() + self._line(self._saying(delta.text, "", []))
            case ThinkingDelta():
                if not delta.text:
                    return b""
                return self._flush() + self._line(self._saying("", delta.text, []))
            case ToolStarted():
                self._open[delta.index] = (delta, [])
                return b""
            case ToolArguments():
                if delta.index not in self._open:
                    raise StreamInterrupted("the back end sent arguments of no tool call")
                self._open[delta.index][1].append(delta.fragment)
                return b""
            case UsageUpdate():
                return b""
            case Finished():
                took = time.perf_counter_ns() - self._began
                end = final(delta.stop, delta.usage, nanoseconds=took, reading=self._reading)
                return self._flush() + self._line(self._saying("", "", []) | end)

    def _flush(self) -> bytes:
        """The line with the calls gathered so far, if there are any."""
        if not self._open:
            return b""
        calls = []
        for started, fragments in self._open.values():
            use = ToolUse(id=started.id, name=started.name, arguments="".join(fragments))
            calls.append(call_body(self._calls, use))
            self._calls += 1
        self._open = {}
        return self._line(self._saying("", "", calls))

    def _line(self, body: Mapping[str, Any]) -> bytes:
        return to_json({**head(self._model), "done": False, **body}) + b"\n"


class StreamTap:
    """Lets a stream pass while it reads the usage. Ollama sends token by token."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self.transcript: Transcript | None = None

    def feed(self, piece: bytes) -> bytes:
        """What may go on to the client.

        Raises:
            StreamInterrupted: a line is malformed, or is the upstream's own error.
        """
        return self._passed(self._splitter.feed(piece))

    def end(self) -> bytes:
        """The last line, where it has no end: Ollama loads and unloads a model with one object and
        no line end, streamed or not."""
        return self._passed(self._splitter.end())

    def _passed(self, lines: list[bytes]) -> bytes:
        for line in lines:
            self._look(_object(line))
        return b"".join(lines)

    def _look(self, body: Mapping[str, Any]) -> None:
        if "error" in body:
            raise StreamInterrupted("the back end broke off with an error")
        message = body.get("message", body)
        if not body.get("done") and (text := _text_alone(message)) is not None:
            self.tokens += 1
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            _take_down(body, self.transcript)
        self.tokens += isinstance(message, dict) and any(
            message.get(name) for name in ("content", "response", "thinking", "tool_calls")
        )
        if body.get("done"):
            self.usage, self.finished = usage_of(body), True


def _text_alone(message: Any) -> str | None:
    """The text of a line that brings nothing else, as nearly all do; None: it is none of these."""
    if not isinstance(message, dict) or message.get("thinking") or message.get("tool_calls"):
        return None
    text = message.get("content") or message.get("response")
    return text if isinstance(text, str) and text else None


def _take_down(body: Mapping[str, Any], transcript: Transcript) -> None:
    """Note what a line of either call says."""
    message = body.get("message") or {
        "content": body.get("response"),
        "thinking": body.get("thinking"),
    }
    try:
        transcript.add(deltas_of(message, tools_before=len(transcript.tools)))
        if body.get("done"):
            stop = stop_of(body, used_tools=bool(transcript.tools))
            transcript.add([Finished(stop=stop, usage=Usage())])
    except (KeyError, TypeError, AttributeError, ValueError):
        transcript.mark_unreadable()


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = from_json(line)
    except ValueError:
        raise StreamInterrupted("the back end sent a line that is not JSON") from None
    if not isinstance(value, dict):
        raise StreamInterrupted("the back end sent a line that is not a JSON object")
    return value
