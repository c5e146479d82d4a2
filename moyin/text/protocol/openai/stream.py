"""Translates chat streams between deltas and OpenAI's events, and taps a passing stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    StopReason,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    UsageUpdate,
)
from moyin.domain.money import Usage
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.http.sse import Frame, FrameSplitter, encode_event, parse_event
from moyin.http.validation import arguments_to_text, require_text
from moyin.text.protocol.openai.response import (
    FINISH_REASONS,
    STOP_REASONS,
    progress_to_domain,
    stop_sequence,
    thinking_block,
    usage_to_client,
)

__all__ = ["StreamReader", "StreamTap", "StreamWriter"]

_DONE = b"[DONE]"
_DONE_FRAME = Frame(b"data: [DONE]\n\n", _DONE)


class StreamWriter:
    """Encodes the deltas of an answer as events."""

    def __init__(self, *, created: int, include_usage: bool) -> None:
        self._created = created
        self._include_usage = include_usage
        self._id = ""
        self._model = ""
        self._thinking = ""

    def write(self, delta: Delta) -> bytes:
        """Encode ``delta`` as events; empty if OpenAI has no event for it."""
        match delta:
            case Started():
                self._id, self._model = delta.id, delta.model
                return self._chunk({"role": "assistant", "content": ""})
            case TextDelta():
                return self._chunk({"content": delta.text})
            case ThinkingDelta():
                return self._thinking_chunk(delta)
            case ToolStarted():
                call = {"id": delta.id, "type": "function"}
                return self._tool(delta.index, call, {"name": delta.name, "arguments": ""})
            case ToolArguments():
                return self._tool(delta.index, {}, {"arguments": delta.fragment})
            case UsageUpdate():
                return b""
            case Finished():
                return self._finish(delta)

    def _thinking_chunk(self, delta: ThinkingDelta) -> bytes:
        self._thinking += delta.text
        chunk = self._chunk({"reasoning_content": delta.text}) if delta.text else b""
        if delta.signature is None and delta.redacted is None:
            return chunk
        part = Thinking(text=self._thinking, signature=delta.signature, redacted=delta.redacted)
        self._thinking = ""
        return chunk + self._chunk({"thinking_blocks": [thinking_block(part)]})

    def _finish(self, delta: Finished) -> bytes:
        chunks = self._chunk({}, finish=FINISH_REASONS[delta.stop])
        if self._include_usage:
            chunks += encode_event(
                self._head() | {"choices": [], "usage": usage_to_client(delta.usage)}
            )
        return chunks + _DONE_FRAME.raw

    def _tool(self, index: int, call: dict[str, Any], function: dict[str, Any]) -> bytes:
        return self._chunk({"tool_calls": [{"index": index, **call, "function": function}]})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return encode_event(self._head() | {"choices": [choice]})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }


class StreamReader:
    """Decodes a back end's events as deltas."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._started = False
        self._head: tuple[str, str] | None = None
        self._stop: StopReason | None = None
        self._stop_sequence: str | None = None
        self._usage = Usage()
        self._tools: dict[int, str] = {}
        self._refused = False
        self.finished = False

    def feed(self, piece: bytes) -> list[Delta]:
        """Return the deltas that ``piece`` completes.

        Raises:
            StreamInterrupted: an event is malformed, or is the back end's own error.
        """
        return [delta for frame in self._splitter.feed(piece) for delta in self._read(frame)]

    def _read(self, frame: Frame) -> list[Delta]:
        if frame.data is None or self.finished:
            return []
        if frame.data == _DONE:
            return self.finish()
        body = _parse(frame)
        deltas: list[Delta] = []
        if (usage := progress_to_domain(body)) is not None:
            self._usage = usage
            if body.get("choices"):
                deltas.append(UsageUpdate(usage=usage))
        try:
            deltas.extend(self.choice_deltas(body))
        except (KeyError, TypeError, AttributeError):
            raise StreamInterrupted("the back end sent a malformed event") from None
        # Servers that report progress begin with the first token, one event after the role.
        self._head = self._head or (str(body.get("id", "")), str(body.get("model", "")))
        return [*self._start(), *deltas] if deltas else []

    def end(self) -> list[Delta]:
        """Return the deltas that the end of the stream completes.

        A stream is complete without ``[DONE]`` once its choice has a ``finish_reason``, because
        some servers do not send ``[DONE]``.

        Raises:
            StreamInterrupted: the back end stopped within an event.
        """
        deltas = [delta for frame in self._splitter.end() for delta in self._read(frame)]
        if not self.finished and self._stop is not None:
            deltas += self.finish()
        return deltas

    def choice_deltas(self, body: Mapping[str, Any]) -> list[Delta]:
        """Return the deltas of an event's choices.

        Raises:
            KeyError, TypeError, AttributeError: the event is malformed.
        """
        return [delta for choice in body.get("choices") or () for delta in self._choice(choice)]

    def _start(self) -> list[Delta]:
        if self._started:
            return []
        self._started = True
        identifier, model = self._head or ("", "")
        return [Started(id=identifier, model=model, usage=self._usage)]

    def _choice(self, choice: Mapping[str, Any]) -> list[Delta]:
        delta = choice.get("delta") or {}
        deltas: list[Delta] = []
        if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
            deltas.append(ThinkingDelta(text=require_text(thinking)))
        if content := delta.get("content"):
            deltas.append(TextDelta(text=require_text(content)))
        if refusal := delta.get("refusal"):
            self._refused = True
            deltas.append(TextDelta(text=require_text(refusal), refusal=True))
        for call in delta.get("tool_calls") or ():
            deltas.extend(self._tool(call))
        if reason := choice.get("finish_reason"):
            self._stop = STOP_REASONS.get(reason, StopReason.END)
            self._stop_sequence = stop_sequence(choice)
        return deltas

    def _tool(self, call: Mapping[str, Any]) -> list[Delta]:
        index, function = call.get("index", len(self._tools)), call.get("function") or {}
        deltas: list[Delta] = []
        if index not in self._tools:
            self._tools[index] = call["id"]
            name = require_text(function["name"])
            deltas.append(ToolStarted(index=index, id=str(call["id"]), name=name))
        if fragment := function.get("arguments"):
            deltas.append(ToolArguments(index=index, fragment=arguments_to_text(fragment)))
        return deltas

    def finish(self) -> list[Delta]:
        """Return the last deltas of the stream."""
        self.finished = True
        stop = self._stop or StopReason.END
        if stop is StopReason.END and self._tools:
            stop = StopReason.TOOL_USE
        if stop is StopReason.END and self._stop_sequence is not None:
            stop = StopReason.STOP_SEQUENCE
        if self._refused:
            stop = StopReason.REFUSAL
        return [
            *self._start(),
            Finished(stop=stop, usage=self._usage, stop_sequence=self._stop_sequence),
        ]


class StreamTap:
    """Passes a stream through and reads the usage from it.

    Args:
        hide_usage: drop the event with the totals, which the client did not request.
        hide_progress: remove the usage so far from the events with text, which the client did not
            request. Clients that add up every ``usage`` would count it once per event.
        choices: the number of answers that the client requested.
    """

    def __init__(self, *, hide_usage: bool, hide_progress: bool = False, choices: int = 1) -> None:
        self._splitter = FrameSplitter()
        self._choices = choices
        self._finished_choices: set[int] = set()
        self._hide_usage = hide_usage
        self._hide_progress = hide_progress
        self._reader = StreamReader()
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self.transcript: Transcript | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            StreamInterrupted: an event is malformed, or is the back end's own error.
        """
        return b"".join([self._process(frame) for frame in self._splitter.feed(piece)])

    def end(self) -> bytes:
        """Return an unterminated last event, and ``[DONE]`` if the back end left it out.

        The stream is complete once every choice has a ``finish_reason``.
        """
        passed = b"".join([self._process(frame) for frame in self._splitter.end()])
        if not self.finished and len(self._finished_choices) >= self._choices:
            passed += self._process(_DONE_FRAME)
        return passed

    def _process(self, frame: Frame) -> bytes:
        if frame.data is None:
            return frame.raw
        if self.finished:
            # Events after the end belong to no answer.
            return b""
        if frame.data == _DONE:
            self.finished = True
            if self.transcript is not None:
                self.transcript.add(self._reader.finish())
            return frame.raw
        body = _parse(frame)
        choices = body.get("choices")
        if (text := _plain_text(choices)) is not None:
            self.tokens += 1
            if self.transcript is not None:
                self.transcript.add_text(text)
        else:
            if self.transcript is not None:
                self._record(body, self.transcript)
            for choice in choices or ():
                self.tokens += _has_output(choice)
                self._record_finish(choice)
        if (usage := progress_to_domain(body)) is None:
            return frame.raw
        self.usage = usage
        if not choices:
            return b"" if self._hide_usage else frame.raw
        if self._hide_progress and body.pop("usage", None) is not None:
            return encode_event(body)
        return frame.raw

    def _record_finish(self, choice: Any) -> None:
        if isinstance(choice, dict) and choice.get("finish_reason"):
            index = choice.get("index", 0)
            if isinstance(index, int):
                self._finished_choices.add(index)

    def _record(self, body: Mapping[str, Any], transcript: Transcript) -> None:
        try:
            transcript.add(self._reader.choice_deltas(body))
        except (KeyError, TypeError, AttributeError):
            transcript.mark_unreadable()


def _plain_text(choices: list[Any] | None) -> str | None:
    """Return the text of an event that holds nothing else, as nearly all events do; else None."""
    if not choices or len(choices) > 1 or not isinstance(choice := choices[0], dict):
        return None
    delta = choice.get("delta")
    if not isinstance(delta, dict) or len(delta) > 1 or choice.get("finish_reason"):
        return None
    text = delta.get("content")
    return text if isinstance(text, str) and text else None


def _has_output(choice: Any) -> bool:
    """Tell if an event holds model output; servers send one token per event."""
    delta = choice.get("delta") if isinstance(choice, dict) else None
    return isinstance(delta, dict) and bool(
        delta.get("content")
        or delta.get("tool_calls")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
    )


def _parse(frame: Frame) -> dict[str, Any]:
    body = parse_event(frame)
    if "error" in body and "choices" not in body:
        raise StreamInterrupted("the back end ended the stream with an error")
    if not isinstance(body.get("choices") or [], list):
        raise StreamInterrupted("the back end sent a malformed event")
    return body
