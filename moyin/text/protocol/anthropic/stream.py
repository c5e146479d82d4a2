"""Translates message streams between deltas and Anthropic's events, and taps a passing stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    UsageUpdate,
)
from moyin.domain.money import Usage
from moyin.domain.needs import count_utf8_bytes, estimate_tokens_from_bytes
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.http.sse import Frame, FrameSplitter, encode_event, parse_event
from moyin.http.validation import require_text
from moyin.text.protocol.anthropic.response import (
    STOP_REASONS,
    WIRE_STOP_REASONS,
    text_block,
    tool_block,
    usage_to_client,
    usage_to_domain,
)

__all__ = ["EventReader", "StreamReader", "StreamTap", "StreamWriter"]


class StreamWriter:
    """Encodes the deltas of an answer as events. Content blocks never overlap."""

    def __init__(self) -> None:
        self._index = -1
        # The kind of the open block: "text", "thinking", the index of a tool call, or none.
        self._open: str | int | None = None

    def write(self, delta: Delta) -> bytes:
        """Encode ``delta`` as events.

        Raises:
            StreamInterrupted: arguments arrive for a tool call whose block is closed.
        """
        match delta:
            case Started():
                return self._start(delta)
            case TextDelta():
                opened = self._switch("text", text_block(""))
                return opened + self._delta({"type": "text_delta", "text": delta.text})
            case ThinkingDelta():
                return self._thinking(delta)
            case ToolStarted():
                return self._switch(delta.index, tool_block(delta.id, delta.name, {}))
            case ToolArguments():
                if self._open != delta.index:
                    raise StreamInterrupted("the back end mixed the arguments of two tool calls")
                return self._delta({"type": "input_json_delta", "partial_json": delta.fragment})
            case UsageUpdate():
                return b""
            case Finished():
                return self._finish(delta)

    def _start(self, delta: Started) -> bytes:
        message: dict[str, Any] = {
            "id": delta.id,
            "type": "message",
            "role": "assistant",
            "model": delta.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": usage_to_client(delta.usage),
        }
        return _event("message_start", message=message)

    def _thinking(self, delta: ThinkingDelta) -> bytes:
        if delta.redacted is not None:
            block = {"type": "redacted_thinking", "data": delta.redacted}
            return self._close() + self._begin("redacted", block) + self._close()
        out = self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if delta.text:
            out += self._delta({"type": "thinking_delta", "thinking": delta.text})
        if delta.signature is not None:
            out += self._delta({"type": "signature_delta", "signature": delta.signature})
        return out

    def _finish(self, delta: Finished) -> bytes:
        end = {"stop_reason": WIRE_STOP_REASONS[delta.stop], "stop_sequence": delta.stop_sequence}
        out = self._close() + _event("message_delta", delta=end, usage=usage_to_client(delta.usage))
        return out + _event("message_stop")

    def _switch(self, kind: str | int, block: Mapping[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        return self._close() + self._begin(kind, block)

    def _begin(self, kind: str | int, block: Mapping[str, Any]) -> bytes:
        self._open, self._index = kind, self._index + 1
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **members: Any) -> bytes:
    return encode_event({"type": kind, **members}, name=kind)


class EventReader:
    """Translates a back end's parsed events to deltas."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._stop = StopReason.END
        self._stop_sequence: str | None = None
        self._tools: dict[int, int] = {}  # content block -> number of the tool call
        self.finished = False

    def feed(self, body: Mapping[str, Any]) -> list[Delta]:
        """Return the deltas of the event ``body``.

        Raises:
            StreamInterrupted: the event is malformed, or is the back end's own error.
        """
        try:
            return self._event(body)
        except (KeyError, TypeError, AttributeError):
            raise StreamInterrupted("the back end sent a malformed event") from None

    def _event(self, body: Mapping[str, Any]) -> list[Delta]:
        match body["type"]:
            case "message_start":
                message = body["message"]
                self._usage = usage_to_domain(message.get("usage"))
                return [Started(id=message["id"], model=message["model"], usage=self._usage)]
            case "content_block_start":
                return self._begin(body["index"], body["content_block"])
            case "content_block_delta":
                return self._delta(body["index"], body["delta"])
            case "message_delta":
                self._usage = usage_to_domain(body.get("usage"), before=self._usage)
                self._stop = STOP_REASONS.get(body["delta"].get("stop_reason"), StopReason.END)
                self._stop_sequence = body["delta"].get("stop_sequence")
            case "message_stop":
                self.finished = True
                return [
                    Finished(stop=self._stop, usage=self._usage, stop_sequence=self._stop_sequence)
                ]
            case "error":
                raise StreamInterrupted("the back end ended the stream with an error")
        return []

    def _begin(self, index: int, block: Mapping[str, Any]) -> list[Delta]:
        match block["type"]:
            case "text" if block["text"]:
                return [TextDelta(text=require_text(block["text"]))]
            case "redacted_thinking":
                return [ThinkingDelta(redacted=block["data"])]
            case "tool_use":
                number = self._tools[index] = len(self._tools)
                started = ToolStarted(index=number, id=block["id"], name=block["name"])
                given = block.get("input")
                whole = [ToolArguments(index=number, fragment=to_json(given).decode())]
                return [started, *whole] if given else [started]
        return []

    def _delta(self, index: int, delta: Mapping[str, Any]) -> list[Delta]:
        match delta["type"]:
            case "text_delta":
                return [TextDelta(text=require_text(delta["text"]))]
            case "thinking_delta":
                return [ThinkingDelta(text=require_text(delta["thinking"]))]
            case "signature_delta":
                return [ThinkingDelta(signature=delta["signature"])]
            case "input_json_delta" if delta["partial_json"]:
                fragment = require_text(delta["partial_json"])
                return [ToolArguments(index=self._tools[index], fragment=fragment)]
        return []


class StreamReader:
    """Decodes a back end's bytes as deltas."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._events = EventReader()

    @property
    def finished(self) -> bool:
        return self._events.finished

    def feed(self, piece: bytes) -> list[Delta]:
        """Return the deltas that ``piece`` completes.

        Raises:
            StreamInterrupted: an event is malformed, or is the back end's own error.
        """
        frames = self._splitter.feed(piece)
        return [d for f in frames if f.data is not None for d in self._events.feed(parse_event(f))]


class StreamTap:
    """Passes a stream through and reads the usage from it."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self.usage: Usage | None = None
        self._size = 0
        self._reader = EventReader()
        self.finished = False
        self.transcript: Transcript | None = None

    @property
    def tokens(self) -> int:
        """An estimate. A delta holds several tokens, and Anthropic counts at the end only."""
        return estimate_tokens_from_bytes(self._size)

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            StreamInterrupted: an event is malformed, or is the back end's own error.
        """
        frames = self._splitter.feed(piece)
        for frame in frames:
            self._inspect(frame)
        return b"".join([frame.raw for frame in frames])

    def end(self) -> bytes:
        """Return the last event if it came without the blank line after it."""
        frames = self._splitter.end()
        for frame in frames:
            self._inspect(frame)
        return b"".join([frame.raw for frame in frames])

    def _inspect(self, frame: Frame) -> None:
        if frame.data is None:
            return
        body = parse_event(frame)
        kind = body.get("type")
        if kind == "content_block_delta" and (text := _plain_text(body.get("delta"))) is not None:
            self._size += count_utf8_bytes(text)
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            self._record(body, self.transcript)
        match kind:
            case "content_block_delta":
                self._size += _text_bytes(body.get("delta"))
            case "message_start" if isinstance(body.get("message"), dict):
                self.usage = usage_to_domain(body["message"].get("usage"))
            case "message_delta":
                self.usage = usage_to_domain(body.get("usage"), before=self.usage)
            case "message_stop":
                self.finished = True
            case "error":
                raise StreamInterrupted("the back end ended the stream with an error")

    def _record(self, body: Mapping[str, Any], transcript: Transcript) -> None:
        try:
            transcript.add(self._reader.feed(body))
        except StreamInterrupted:
            # `_inspect` decides if the stream can continue.
            transcript.mark_unreadable()


def _plain_text(delta: Any) -> str | None:
    """Return the text of a text delta, as nearly all deltas are; else None."""
    if not isinstance(delta, dict) or delta.get("type") != "text_delta":
        return None
    text = delta.get("text")
    return text if isinstance(text, str) else None


def _text_bytes(delta: Any) -> int:
    if not isinstance(delta, dict):
        return 0
    text = delta.get("text") or delta.get("partial_json") or delta.get("thinking")
    return count_utf8_bytes(text) if isinstance(text, str) else 0
