"""Translates streams between Anthropic's events and the deltas of `moyin.domain.chat`.

`StreamTap` reads the usage from streams that are forwarded to an Anthropic client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.domain.needs import count_utf8_bytes, estimate_tokens_from_bytes
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.http.sse import Frame, FrameSplitter, encode_event, parse_event
from moyin.http.validation import require_text
from moyin.text.protocol.anthropic.response import (
    STOP_REASONS,
    WIRE_STOP_REASONS,
    encode_text_block,
    encode_tool_use_block,
    usage_to_client,
    usage_to_domain,
)


class StreamWriter:
    """Encodes the deltas of an answer as Anthropic's events.

    Anthropic's content blocks do not overlap. If a back end interleaves tool calls, each call is
    held back until the arguments of the previous one are complete.
    """

    def __init__(self) -> None:
        self._index = -1
        # The open block: "text", "thinking", the index of a tool call, or None.
        self._open: str | int | None = None
        self._arguments: list[str] = []  # arguments of the open tool call
        self._waiting_calls: dict[int, tuple[chat.ToolStarted, list[str]]] = {}

    def write(self, delta: chat.Delta) -> bytes:
        """Encode ``delta`` as events.

        Raises:
            StreamInterrupted: arguments arrive for a tool call that has not begun, or has ended.
        """
        match delta:
            case chat.Started():
                return self._encode_start(delta)
            case chat.TextDelta():
                opening_events = self._release_calls() + self._switch_block(
                    "text", encode_text_block("")
                )
                return opening_events + self._encode_delta(
                    {"type": "text_delta", "text": delta.text}
                )
            case chat.ThinkingDelta():
                return self._release_calls() + self._encode_thinking(delta)
            case chat.ToolStarted():
                if self._waiting_calls or not self._is_call_complete():
                    self._waiting_calls[delta.index] = delta, []
                    return b""
                return self._start_call(delta)
            case chat.ToolArguments():
                return self._encode_arguments(delta)
            case chat.UsageUpdate():
                return b""
            case chat.Finished():
                return self._release_calls() + self._encode_end(delta)

    def _is_call_complete(self) -> bool:
        """Return True unless the open content block is a tool call with incomplete arguments."""
        if not isinstance(self._open, int):
            return True
        try:
            from_json("".join(self._arguments))
        except ValueError:
            return False
        return True

    def _start_call(self, delta: chat.ToolStarted) -> bytes:
        self._arguments = []
        block = encode_tool_use_block(delta.id, delta.name, {})
        return self._switch_block(delta.index, block)

    def _encode_arguments(self, delta: chat.ToolArguments) -> bytes:
        if (waiting_call := self._waiting_calls.get(delta.index)) is not None:
            waiting_call[1].append(delta.fragment)
            return b""
        if self._open != delta.index:
            if not delta.fragment.strip():
                return b""
            raise StreamInterrupted(
                f"the back end sent arguments of tool call {delta.index} before or after that call; retry later"
            )
        self._arguments.append(delta.fragment)
        events = self._encode_delta({"type": "input_json_delta", "partial_json": delta.fragment})
        if self._waiting_calls and delta.fragment.rstrip().endswith("}"):
            events += self._release_calls(only_complete=True)
        return events

    def _release_calls(self, *, only_complete: bool = False) -> bytes:
        """Encode the tool calls that are held back as events.

        If ``only_complete`` is True, the first incomplete call and all later ones stay held back.
        """
        events = b""
        while self._waiting_calls and not (only_complete and not self._is_call_complete()):
            call_start, fragments = self._waiting_calls.pop(next(iter(self._waiting_calls)))
            events += self._start_call(call_start)
            if arguments := "".join(fragments):
                self._arguments.append(arguments)
                events += self._encode_delta(
                    {"type": "input_json_delta", "partial_json": arguments}
                )
        return events

    def _encode_start(self, delta: chat.Started) -> bytes:
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
        return _encode_event("message_start", message=message)

    def _encode_thinking(self, delta: chat.ThinkingDelta) -> bytes:
        if delta.redacted is not None:
            block = {"type": "redacted_thinking", "data": delta.redacted}
            return self._close_block() + self._open_block("redacted", block) + self._close_block()
        events = self._switch_block(
            "thinking", {"type": "thinking", "thinking": "", "signature": ""}
        )
        if delta.text:
            events += self._encode_delta({"type": "thinking_delta", "thinking": delta.text})
        if delta.signature is not None:
            events += self._encode_delta({"type": "signature_delta", "signature": delta.signature})
        return events

    def _encode_end(self, delta: chat.Finished) -> bytes:
        message_delta = {
            "stop_reason": WIRE_STOP_REASONS[delta.stop],
            "stop_sequence": delta.stop_sequence,
        }
        events = self._close_block() + _encode_event(
            "message_delta", delta=message_delta, usage=usage_to_client(delta.usage)
        )
        return events + _encode_event("message_stop")

    def _switch_block(self, block_kind: str | int, block: Mapping[str, Any]) -> bytes:
        if self._open == block_kind:
            return b""
        return self._close_block() + self._open_block(block_kind, block)

    def _open_block(self, block_kind: str | int, block: Mapping[str, Any]) -> bytes:
        self._open, self._index = block_kind, self._index + 1
        return _encode_event("content_block_start", index=self._index, content_block=block)

    def _encode_delta(self, delta: Mapping[str, Any]) -> bytes:
        return _encode_event("content_block_delta", index=self._index, delta=delta)

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _encode_event("content_block_stop", index=self._index)


def _encode_event(event_type: str, **members: Any) -> bytes:
    return encode_event({"type": event_type, **members}, name=event_type)


class EventReader:
    """Translates the parsed events of one Anthropic stream to deltas."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._stop_reason = chat.StopReason.END
        self._stop_sequence: str | None = None
        self._tools: dict[int, int] = {}  # number of the tool call by index of its content block
        self.is_finished = False

    def feed(self, body: Mapping[str, Any]) -> list[chat.Delta]:
        """Translate the event ``body`` to deltas.

        Raises:
            StreamInterrupted: the event is malformed, or reports an error of the back end.
        """
        try:
            return self._translate_event(body)
        except (KeyError, TypeError, AttributeError):
            raise StreamInterrupted(
                "the back end sent an event that does not have the members of Anthropic's format; check its type in the configuration"
            ) from None

    def _translate_event(self, body: Mapping[str, Any]) -> list[chat.Delta]:
        match body["type"]:
            case "message_start":
                message = body["message"]
                self._usage = usage_to_domain(message.get("usage"))
                return [chat.Started(id=message["id"], model=message["model"], usage=self._usage)]
            case "content_block_start":
                return self._translate_block_start(body["index"], body["content_block"])
            case "content_block_delta":
                return self._translate_block_delta(body["index"], body["delta"])
            case "message_delta":
                self._usage = usage_to_domain(body.get("usage"), earlier_usage=self._usage)
                self._stop_reason = STOP_REASONS.get(
                    body["delta"].get("stop_reason"), chat.StopReason.END
                )
                self._stop_sequence = body["delta"].get("stop_sequence")
            case "message_stop":
                self.is_finished = True
                return [
                    chat.Finished(
                        stop=self._stop_reason, usage=self._usage, stop_sequence=self._stop_sequence
                    )
                ]
            case "error":
                raise StreamInterrupted(
                    "the back end reported an error event in its stream; retry later"
                )
        return []

    def _translate_block_start(self, index: int, block: Mapping[str, Any]) -> list[chat.Delta]:
        match block["type"]:
            case "text" if block["text"]:
                return [chat.TextDelta(text=require_text(block["text"]))]
            case "redacted_thinking":
                return [chat.ThinkingDelta(redacted=block["data"])]
            case "tool_use":
                call_index = self._tools[index] = len(self._tools)
                call_start = chat.ToolStarted(index=call_index, id=block["id"], name=block["name"])
                initial_input = block.get("input")
                arguments = [
                    chat.ToolArguments(index=call_index, fragment=to_json(initial_input).decode())
                ]
                return [call_start, *arguments] if initial_input else [call_start]
        return []

    def _translate_block_delta(self, index: int, delta: Mapping[str, Any]) -> list[chat.Delta]:
        match delta["type"]:
            case "text_delta":
                return [chat.TextDelta(text=require_text(delta["text"]))]
            case "thinking_delta":
                return [chat.ThinkingDelta(text=require_text(delta["thinking"]))]
            case "signature_delta":
                return [chat.ThinkingDelta(signature=delta["signature"])]
            case "input_json_delta" if delta["partial_json"]:
                fragment = require_text(delta["partial_json"])
                return [chat.ToolArguments(index=self._tools[index], fragment=fragment)]
        return []


class StreamReader:
    """Decodes the bytes of one Anthropic stream as deltas."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._events = EventReader()

    @property
    def is_finished(self) -> bool:
        return self._events.is_finished

    def feed(self, piece: bytes) -> list[chat.Delta]:
        """Return the deltas of the events that ``piece`` completes.

        Raises:
            StreamInterrupted: an event is malformed, or reports an error of the back end.
        """
        frames = self._splitter.feed(piece)
        return [d for f in frames if f.data is not None for d in self._events.feed(parse_event(f))]


class StreamTap:
    """Forwards an Anthropic stream unchanged and reads the usage from it."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self.usage: Usage | None = None
        self.prompt_tokens = 0
        self._output_bytes = 0
        self._reader = EventReader()
        self.is_finished = False
        self.transcript: Transcript | None = None

    @property
    def tokens(self) -> int:
        """The output tokens so far, estimated because Anthropic reports a count only at the end."""
        return estimate_tokens_from_bytes(self._output_bytes)

    def feed(self, piece: bytes) -> bytes:
        """Return the events that ``piece`` completes, as the back end sent them.

        Raises:
            StreamInterrupted: an event is malformed, or reports an error of the back end.
        """
        frames = self._splitter.feed(piece)
        for frame in frames:
            self._inspect_frame(frame)
        return b"".join([frame.raw for frame in frames])

    def flush(self) -> bytes:
        """Return the last event if the back end sent no blank line after it; else no bytes."""
        frames = self._splitter.end()
        for frame in frames:
            self._inspect_frame(frame)
        return b"".join([frame.raw for frame in frames])

    def _inspect_frame(self, frame: Frame) -> None:
        if frame.data is None:
            return
        body = parse_event(frame)
        event_type = body.get("type")
        if (
            event_type == "content_block_delta"
            and (text := _read_plain_text(body.get("delta"))) is not None
        ):
            self._output_bytes += count_utf8_bytes(text)
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            self._record_event(body, self.transcript)
        match event_type:
            case "content_block_delta":
                self._output_bytes += _count_delta_bytes(body.get("delta"))
            case "message_start" if isinstance(body.get("message"), dict):
                self.usage = usage_to_domain(body["message"].get("usage"))
            case "message_delta":
                self.usage = usage_to_domain(body.get("usage"), earlier_usage=self.usage)
            case "message_stop":
                self.is_finished = True
            case "error":
                raise StreamInterrupted(
                    "the back end reported an error event in its stream; retry later"
                )

    def _record_event(self, body: Mapping[str, Any], transcript: Transcript) -> None:
        try:
            transcript.add(self._reader.feed(body))
        except StreamInterrupted:
            # `_inspect_frame` decides if the stream can continue.
            transcript.mark_unreadable()


def _read_plain_text(delta: Any) -> str | None:
    """Return the text of a text delta, the most frequent kind; None for other deltas."""
    if not isinstance(delta, dict) or delta.get("type") != "text_delta":
        return None
    text = delta.get("text")
    return text if isinstance(text, str) else None


def _count_delta_bytes(delta: Any) -> int:
    if not isinstance(delta, dict):
        return 0
    text = delta.get("text") or delta.get("partial_json") or delta.get("thinking")
    return count_utf8_bytes(text) if isinstance(text, str) else 0
