"""Encodes the deltas of `moyin.domain.chat` as Ollama's lines of JSON.

`StreamTap` reads the usage from streams that are forwarded to an Ollama client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.text.protocol.ollama.response import (
    build_first_members,
    build_last_members,
    encode_logprobs_member,
    message_to_deltas,
    read_stop_reason,
    rename_model,
    tool_call_to_client,
    usage_to_domain,
)

JSON_LINES = b"application/x-ndjson"
_MAX_LINE_BYTES = 16 * 1024 * 1024  # bounds the memory for a line without an end

# Encodes text, thinking and tool calls as members of an object in the stream.
ContentEncoder = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]


def encode_chat_content(
    text: str, thinking: str, tool_calls: list[dict[str, Any]]
) -> dict[str, Any]:
    """Encode a piece of an answer as members of a line in a stream of ``/api/chat``."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if tool_calls:
        message["tool_calls"] = tool_calls
    return {"message": message}


def encode_generate_content(
    text: str, thinking: str, tool_calls: list[dict[str, Any]]
) -> dict[str, Any]:
    """Encode a piece of an answer as members of a line in a stream of ``/api/generate``."""
    return {"response": text, **({"thinking": thinking} if thinking else {})}


class LineSplitter:
    """Splits a stream of bytes into whole lines."""

    def __init__(self) -> None:
        self._line_start = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that ``piece`` completes, with their line ends and without blank lines.

        Raises:
            StreamInterrupted: a line exceeds 16 MiB.
        """
        *lines, self._line_start = (self._line_start + piece).split(b"\n")
        if len(self._line_start) > _MAX_LINE_BYTES:
            raise StreamInterrupted("the back end sent a stream line longer than 16 MiB")
        return [line + b"\n" for line in lines if line.strip()]

    def flush(self) -> list[bytes]:
        """Return the last line of the stream if it has no line end; else an empty list."""
        return self.feed(b"\n")


class StreamWriter:
    """Encodes the deltas of an answer as lines of JSON, with each tool call in a single line.

    Every line contains ``model``, the model name in the client's request.
    """

    def __init__(self, encode_content: ContentEncoder, model: str) -> None:
        self._encode_content = encode_content
        self._began = time.perf_counter_ns()
        self._prompt_nanoseconds = 0
        self._model = model
        self._calls = 0
        self._open: dict[int, tuple[chat.ToolStarted, list[str]]] = {}

    def write(self, delta: chat.Delta) -> bytes:
        """Encode ``delta`` as lines, or as no bytes if Ollama has no line for it.

        Raises:
            InvalidToolCall: the arguments of a tool call are not a JSON object.
            StreamInterrupted: arguments arrive for a tool call that has not started.
        """
        if not self._prompt_nanoseconds and isinstance(
            delta, chat.TextDelta | chat.ThinkingDelta | chat.ToolStarted
        ):
            self._prompt_nanoseconds = time.perf_counter_ns() - self._began
        match delta:
            case chat.Started():
                return b""
            case chat.TextDelta():
                return self._flush_tool_calls() + self._encode_line(
                    self._encode_content(delta.text, "", [])
                    | encode_logprobs_member(delta.logprobs)
                )
            case chat.ThinkingDelta():
                if not delta.text:
                    return b""
                return self._flush_tool_calls() + self._encode_line(
                    self._encode_content("", delta.text, [])
                )
            case chat.ToolStarted():
                self._open[delta.index] = (delta, [])
                return b""
            case chat.ToolArguments():
                if delta.index not in self._open:
                    raise StreamInterrupted(
                        f"the back end sent arguments of tool call {delta.index} before its start"
                    )
                self._open[delta.index][1].append(delta.fragment)
                return b""
            case chat.UsageUpdate():
                return b""
            case chat.Finished():
                last_members = build_last_members(
                    delta.stop,
                    delta.usage,
                    nanoseconds=time.perf_counter_ns() - self._began,
                    prompt_nanoseconds=self._prompt_nanoseconds,
                )
                return self._flush_tool_calls() + self._encode_line(
                    self._encode_content("", "", []) | last_members
                )

    def _flush_tool_calls(self) -> bytes:
        """Encode the collected tool calls as a line, or return no bytes if there are none."""
        if not self._open:
            return b""
        tool_calls = []
        for call_start, fragments in self._open.values():
            tool_use = chat.ToolUse(
                id=call_start.id, name=call_start.name, arguments="".join(fragments)
            )
            tool_calls.append(tool_call_to_client(self._calls, tool_use))
            self._calls += 1
        self._open = {}
        return self._encode_line(self._encode_content("", "", tool_calls))

    def _encode_line(self, body: Mapping[str, Any]) -> bytes:
        return to_json({**build_first_members(self._model), "done": False, **body}) + b"\n"


class StreamTap:
    """Forwards an Ollama stream and reads the usage from it.

    Only the model's name is replaced by ``model``, the name in the client's request. Tokens are
    counted by lines, because Ollama sends one token per line.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._splitter = LineSplitter()
        self.usage: Usage | None = None
        self.prompt_tokens = 0
        self.tokens = 0
        self.is_finished = False
        self.transcript: Transcript | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the lines that ``piece`` completes, with the model's name that the client used.

        Raises:
            StreamInterrupted: a line is malformed, or reports an error of the back end.
        """
        return self._process_lines(self._splitter.feed(piece))

    def flush(self) -> bytes:
        """Return the last line of the stream if it has no line end; else no bytes.

        Ollama's response to a request that loads or unloads a model consists of such a line.
        """
        return self._process_lines(self._splitter.flush())

    def _process_lines(self, lines: list[bytes]) -> bytes:
        for line in lines:
            self._inspect_line(_parse_line(line))
        return b"".join(rename_model(line, self._model) for line in lines)

    def _inspect_line(self, body: Mapping[str, Any]) -> None:
        if "error" in body:
            raise StreamInterrupted("the back end reported an error in its stream; retry later")
        message = body.get("message", body)
        if not body.get("done") and (text := _read_plain_text(message)) is not None:
            self.tokens += 1
            if self.transcript is not None:
                self.transcript.add_text(text)
            return
        if self.transcript is not None:
            _record_line(body, self.transcript)
        self.tokens += isinstance(message, dict) and any(
            message.get(name) for name in ("content", "response", "thinking", "tool_calls")
        )
        if body.get("done"):
            self.usage, self.is_finished = usage_to_domain(body), True


def _read_plain_text(message: Any) -> str | None:
    """Return the text of a line that contains only text, the most frequent kind; else None."""
    if not isinstance(message, dict) or message.get("thinking") or message.get("tool_calls"):
        return None
    text = message.get("content") or message.get("response")
    return text if isinstance(text, str) and text else None


def _record_line(body: Mapping[str, Any], transcript: Transcript) -> None:
    """Add the content of a line of ``/api/chat`` or ``/api/generate`` to ``transcript``."""
    message = body.get("message") or {
        "content": body.get("response"),
        "thinking": body.get("thinking"),
    }
    try:
        transcript.add(message_to_deltas(message, earlier_tool_count=len(transcript.tools)))
        if body.get("done"):
            stop = read_stop_reason(body, has_tool_calls=bool(transcript.tools))
            transcript.add([chat.Finished(stop=stop, usage=Usage())])
    except (KeyError, TypeError, AttributeError, ValueError):
        transcript.mark_unreadable()


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        parsed_line = from_json(line)
    except ValueError:
        raise StreamInterrupted(
            "the back end sent a stream line that is not JSON; check its type in the configuration"
        ) from None
    if not isinstance(parsed_line, dict):
        raise StreamInterrupted(
            "the back end sent a stream line that is not a JSON object; check its type in the configuration"
        )
    return parsed_line
