"""Message streams: deltas to Anthropic's events and back, and the tap on a passing stream."""

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
from moyin.domain.needs import text_size, tokens_in
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.http.sse import Frame, FrameSplitter, event, parse_event
from moyin.http.validation import require_text
from moyin.text.protocol.anthropic.response import (
    STOP,
    STOP_BACK,
    text_block,
    tool_block,
    usage_body,
    usage_of,
)

__all__ = ["EventReader", "StreamReader", "StreamTap", "StreamWriter"]


class StreamWriter:
    """Writes one answer's deltas as events. Content blocks follow one another, never overlap."""

    def __init__(self) -> None:
        self._index = -1
        # What the open block holds: "text", "thinking", the index of a tool call, or nothing.
        self._open: str | int | None = None

    def write(self, delta: Delta) -> bytes:
        """The events that say ``delta``.

        Raises:
            StreamInterrupted: arguments come for a tool call whose block is closed.
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
            "usage": usage_body(delta.usage),
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
        end = {"stop_reason": STOP_BACK[delta.stop], "stop_sequence": delta.stop_sequence}
        out = self._close() + _event("message_delta", delta=end, usage=usage_body(delta.usage))
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
    return event({"type": kind, **members}, name=kind)


class EventReader:
    """Reads an upstream's decoded events as deltas."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._stop = StopReason.END
        self._stop_sequence: str | None = None
        self._tools: dict[int, int] = {}  # content block -> number of the tool call
        self.finished = False

    def feed(self, body: Mapping[str, Any]) -> list[Delta]:
        """The deltas that the event ``body`` says.

        Raises:
            StreamInterrupted: it is malformed, or is the upstream's own error.
        """
        try:
            return self._event(body)
        except (KeyError, TypeError, AttributeError):
            raise StreamInterrupted("the back end sent an event of an unknown shape") from None

    def _event(self, body: Mapping[str, Any]) -> list[Delta]:
        match body["type"]:
            case "message_start":
                message = body["message"]
                self._usage = usage_of(message.get("usage"))
                return [Started(id=message["id"], model=message["model"], usage=self._usage)]
            case "content_block_start":
                return self._begin(body["index"], body["content_block"])
            case "content_block_delta":
                return self._delta(body["index"], body["delta"])
            case "message_delta":
                self._usage = usage_of(body.get("usage"), before=self._usage)
                self._stop = STOP.get(body["delta"].get("stop_reason"), StopReason.END)
                self._stop_sequence = body["delta"].get("stop_sequence")
            case "message_stop":
                self.finished = True
                return [
                    Finished(stop=self._stop, usage=self._usage, stop_sequence=self._stop_sequence)
                ]
            case "error":
                raise StreamInterrupted("the back end broke off with an error")
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
    """Reads an upstream's bytes as deltas."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._events = EventReader()

    @property
    def finished(self) -> bool:
        return self._events.finished

    def feed(self, piece: bytes) -> list[Delta]:
        """The deltas that ``piece`` completes.

        Raises:
            StreamInterrupted: an event is malformed, or is the upstream's own error.
        """
        frames = self._splitter.feed(piece)
        return [d for f in frames if f.data is not None for d in self._events.feed(parse_event(f))]


class StreamTap:
    """Lets a stream pass while it reads the usage."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self.usage: Usage | None = None
        self._size = 0
        self._reader = EventReader()
        self.finished = False
        self.transcript: Transcript | None = None

    @property
    def tokens(self) -> int:
        """An estimate: a delta holds several tokens, and the count comes at the end only."""
        return tokens_in(self._size)

    def feed(self, piece: bytes) -> bytes:
        """What may go on to the client.

        Raises:
            StreamInterrupted: an event is malformed, or is the upstream's own error.
        """
        frames = self._splitter.feed(piece)
        for frame in frames:
            self._look(frame)
        return b"".join([frame.raw for frame in frames])

    def end(self) -> bytes:
        """The last event, where it came without the blank line after it."""
        frames = self._splitter.end()
        for frame in frames:
            self._look(frame)
        return b"".join([frame.raw for frame in frames])

    def _look(self, frame: Frame) -> None:
        if frame.data is None:
            return
        body = parse_event(frame)
        kind = body.get("type")
        if kind == "content_block_delta" and (text := _text_alone(body.get("delta"))) is not None:
            self._size += text_size(text)
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            self._take_down(body, self.transcript)
        match kind:
            case "content_block_delta":
                self._size += _size(body.get("delta"))
            case "message_start" if isinstance(body.get("message"), dict):
                self.usage = usage_of(body["message"].get("usage"))
            case "message_delta":
                self.usage = usage_of(body.get("usage"), before=self.usage)
            case "message_stop":
                self.finished = True
            case "error":
                raise StreamInterrupted("the back end broke off with an error")

    def _take_down(self, body: Mapping[str, Any], transcript: Transcript) -> None:
        try:
            transcript.add(self._reader.feed(body))
        except StreamInterrupted:
            # Whether the stream may go on is for `_look` to say.
            transcript.mark_unreadable()


def _text_alone(delta: Any) -> str | None:
    """The text of a delta of text, as nearly all are; None: it is another."""
    if not isinstance(delta, dict) or delta.get("type") != "text_delta":
        return None
    text = delta.get("text")
    return text if isinstance(text, str) else None


def _size(delta: Any) -> int:
    if not isinstance(delta, dict):
        return 0
    text = delta.get("text") or delta.get("partial_json") or delta.get("thinking")
    return text_size(text) if isinstance(text, str) else 0
