"""Translates streams between OpenAI's events and the deltas of `moyin.domain.chat`.

`StreamTap` reads the usage from streams that are forwarded to an OpenAI client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.http.sse import Frame, FrameSplitter, encode_event, parse_event
from moyin.http.validation import arguments_to_text, require_text
from moyin.text.protocol.logprobs import logprobs_to_domain
from moyin.text.protocol.openai.event_repair import EventRepair
from moyin.text.protocol.openai.response import (
    FINISH_REASONS,
    STOP_REASONS,
    encode_choice_logprobs,
    encode_thinking_block,
    event_usage_to_domain,
    new_tool_call_id,
    read_stop_sequence,
    split_content,
    usage_to_client,
)

_DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
_NO_USAGE = Usage()
_ERROR_MARKER = b'"error"'
_DONE_FRAME = Frame(DONE_EVENT, _DONE)
_MALFORMED_EVENT = "the back end sent an event that does not have the members of OpenAI's format; check its type in the configuration"


class StreamWriter:
    """Encodes the deltas of an answer as OpenAI's events."""

    def __init__(self, *, created: int, include_usage: bool) -> None:
        self._created = created
        self._include_usage = include_usage
        self._id = ""
        self._model = ""
        self._thinking = ""

    def write(self, delta: chat.Delta) -> bytes:
        """Encode ``delta`` as events, or as no bytes if OpenAI has no event for it."""
        match delta:
            case chat.Started():
                self._id, self._model = delta.id, delta.model
                return self._encode_chunk({"role": "assistant", "content": ""})
            case chat.TextDelta():
                return self._encode_chunk({"content": delta.text}, logprobs=delta.logprobs)
            case chat.ThinkingDelta():
                return self._encode_thinking(delta)
            case chat.ToolStarted():
                call = {"id": delta.id, "type": "function"}
                return self._encode_tool_call(
                    delta.index, call, {"name": delta.name, "arguments": ""}
                )
            case chat.ToolArguments():
                return self._encode_tool_call(delta.index, {}, {"arguments": delta.fragment})
            case chat.UsageUpdate():
                return b""
            case chat.Finished():
                return self._encode_end(delta)

    def _encode_thinking(self, delta: chat.ThinkingDelta) -> bytes:
        self._thinking += delta.text
        chunk = self._encode_chunk({"reasoning_content": delta.text}) if delta.text else b""
        if delta.signature is None and delta.redacted is None:
            return chunk
        thinking_part = chat.Thinking(
            text=self._thinking, signature=delta.signature, redacted=delta.redacted
        )
        self._thinking = ""
        return chunk + self._encode_chunk(
            {"thinking_blocks": [encode_thinking_block(thinking_part)]}
        )

    def _encode_end(self, delta: chat.Finished) -> bytes:
        chunks = self._encode_chunk({}, finish_reason=FINISH_REASONS[delta.stop])
        if self._include_usage:
            chunks += encode_event(
                self._build_chunk_head() | {"choices": [], "usage": usage_to_client(delta.usage)}
            )
        return chunks + DONE_EVENT

    def _encode_tool_call(
        self, index: int, call: dict[str, Any], function: dict[str, Any]
    ) -> bytes:
        return self._encode_chunk({"tool_calls": [{"index": index, **call, "function": function}]})

    def _encode_chunk(
        self,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        logprobs: tuple[chat.TokenLogprob, ...] = (),
    ) -> bytes:
        choice = {
            "index": 0,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": encode_choice_logprobs(logprobs),
        }
        return encode_event(self._build_chunk_head() | {"choices": [choice]})

    def _build_chunk_head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }


class StreamReader:
    """Decodes the bytes of one OpenAI stream as deltas."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._has_started = False
        self._id = ""
        self._model = ""
        self._stop_reason: chat.StopReason | None = None
        self._stop_sequence: str | None = None
        self._usage = Usage()
        # Number and id of each tool call, by its index.
        self._tools: dict[int, tuple[int, Any]] = {}
        self._tool_count = 0
        self._has_refusal = False
        self.is_finished = False

    def feed(self, piece: bytes) -> list[chat.Delta]:
        """Return the deltas of the events that ``piece`` completes.

        Raises:
            StreamInterrupted: an event is malformed, or reports an error of the back end.
        """
        return [
            delta for frame in self._splitter.feed(piece) for delta in self._frame_to_deltas(frame)
        ]

    def _frame_to_deltas(self, frame: Frame) -> list[chat.Delta]:
        if frame.data is None or self.is_finished:
            return []
        if frame.data == _DONE:
            return self.finish()
        body = _parse_chunk(frame)
        deltas: list[chat.Delta] = []
        if (usage := event_usage_to_domain(body)) is not None:
            self._usage = usage
            if body.get("choices"):
                deltas.append(chat.UsageUpdate(usage=usage))
        try:
            deltas.extend(self.choices_to_deltas(body))
        except (KeyError, TypeError, AttributeError):
            raise StreamInterrupted(_MALFORMED_EVENT) from None
        # `Started` precedes the first delta, not the event with the role, because the usage of the
        # prompt may follow that event. Azure's first event, about the prompt, has empty names.
        self._id = self._id or str(body.get("id") or "")
        self._model = self._model or str(body.get("model") or "")
        return [*self._emit_started_once(), *deltas] if deltas else []

    def flush(self) -> list[chat.Delta]:
        """Return the last deltas after the back end closed its stream.

        A stream without ``[DONE]``, which some servers do not send, is complete once its choice has
        a ``finish_reason``.

        Raises:
            StreamInterrupted: the back end stopped within an event.
        """
        deltas = [delta for frame in self._splitter.end() for delta in self._frame_to_deltas(frame)]
        if not self.is_finished and self._stop_reason is not None:
            deltas += self.finish()
        return deltas

    def choices_to_deltas(self, body: Mapping[str, Any]) -> list[chat.Delta]:
        """Translate the choices of an event to deltas.

        Raises:
            KeyError, TypeError, AttributeError: the event is malformed.
        """
        return [
            delta
            for choice in body.get("choices") or ()
            for delta in self._choice_to_deltas(choice)
        ]

    def _emit_started_once(self) -> list[chat.Delta]:
        if self._has_started:
            return []
        self._has_started = True
        return [chat.Started(id=self._id, model=self._model, usage=self._usage)]

    def _choice_to_deltas(self, choice: Mapping[str, Any]) -> list[chat.Delta]:
        delta = choice.get("delta") or {}
        deltas: list[chat.Delta] = []
        # Events of text completions have the text in the choice itself.
        thinking_in_content, text = split_content(delta.get("content") or choice.get("text"))
        if (
            thinking := delta.get("reasoning_content")
            or delta.get("reasoning")
            or thinking_in_content
        ):
            deltas.append(chat.ThinkingDelta(text=require_text(thinking)))
        if text:
            deltas.append(chat.TextDelta(text=text, logprobs=_read_logprobs(choice)))
        if refusal := delta.get("refusal"):
            self._has_refusal = True
            deltas.append(chat.TextDelta(text=require_text(refusal), refusal=True))
        for call in delta.get("tool_calls") or ():
            deltas.extend(self._tool_call_to_deltas(call))
        if reason := choice.get("finish_reason"):
            self._stop_reason = STOP_REASONS.get(reason, chat.StopReason.END)
            self._stop_sequence = read_stop_sequence(choice)
        return deltas

    def _tool_call_to_deltas(self, call: Mapping[str, Any]) -> list[chat.Delta]:
        function = call.get("function") or {}
        index = self._find_tool_index(call, function)
        deltas: list[chat.Delta] = []
        call_index, known_id = self._tools.get(index, (None, None))
        # Gemini gives all calls the index 0, each with its own id and name.
        is_next = function.get("name") and call.get("id") not in (None, known_id)
        if call_index is None or is_next:
            call_index, self._tool_count = self._tool_count, self._tool_count + 1
            name = require_text(function["name"])
            call_id = str(call.get("id") or new_tool_call_id())
            self._tools[index] = call_index, call_id
            deltas.append(chat.ToolStarted(index=call_index, id=call_id, name=name))
        if fragment := function.get("arguments"):
            deltas.append(
                chat.ToolArguments(index=call_index, fragment=arguments_to_text(fragment))
            )
        return deltas

    def _find_tool_index(self, call: Mapping[str, Any], function: Mapping[str, Any]) -> int:
        """Return the index of a tool call, or infer it if Gemini omitted it."""
        index = call.get("index")
        if isinstance(index, int):
            return index
        # A call without index has its name only in its first event.
        return len(self._tools) if function.get("name") else len(self._tools) - 1

    def finish(self) -> list[chat.Delta]:
        """Return the `Finished` delta, preceded by `Started` if the stream had no other delta."""
        self.is_finished = True
        stop = self._stop_reason or chat.StopReason.END
        if stop is chat.StopReason.END and self._tools:
            stop = chat.StopReason.TOOL_USE
        if stop is chat.StopReason.END and self._stop_sequence is not None:
            stop = chat.StopReason.STOP_SEQUENCE
        if self._has_refusal:
            stop = chat.StopReason.REFUSAL
        return [
            *self._emit_started_once(),
            chat.Finished(stop=stop, usage=self._usage, stop_sequence=self._stop_sequence),
        ]


class StreamTap:
    """Forwards an OpenAI stream and reads the usage from it.

    Args:
        hide_usage: drop the event with the total usage, which the client did not request.
        hide_progress: remove ``usage`` from the events with text. The client did not request it,
            and a client that adds up all events' usage would count tokens several times. If the
            back end reports no total, the last removed usage serves as the total.
        choice_count: the number of answers that the client requested.
    """

    def __init__(
        self, *, hide_usage: bool, hide_progress: bool = False, choice_count: int = 1
    ) -> None:
        self._splitter = FrameSplitter()
        self._choice_count = choice_count
        self._repair = EventRepair()
        # The event with the total usage, for back ends that report usage only in other events.
        self._total: dict[str, Any] | None = None
        self._finished_choices: set[int] = set()
        self._hide_usage = hide_usage
        self._hide_progress = hide_progress
        self._reader = StreamReader()
        self.usage: Usage | None = None
        self.prompt_tokens = 0
        self._last_event: Mapping[str, Any] = {}
        self.tokens = 0
        self.is_finished = False
        self.transcript: Transcript | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the events that ``piece`` completes, without usage that the client doesn't want.

        Raises:
            StreamInterrupted: an event is malformed, or reports an error of the back end.
        """
        return b"".join([self._process_frame(frame) for frame in self._splitter.feed(piece)])

    def flush(self) -> bytes:
        """Return the rest of the last event, and ``[DONE]`` if the back end did not send it.

        A stream without ``[DONE]`` is complete once every choice has a ``finish_reason``.
        """
        output = b"".join([self._process_frame(frame) for frame in self._splitter.end()])
        if not self.is_finished and len(self._finished_choices) >= self._choice_count:
            output += self._process_frame(_DONE_FRAME)
        return output

    def _process_frame(self, frame: Frame) -> bytes:
        if frame.data is None:
            return frame.raw
        if self.is_finished:
            # Events after ``[DONE]`` do not belong to the answer.
            return b""
        if frame.data == _DONE:
            self.is_finished = True
            if self.transcript is not None:
                self.transcript.add(self._reader.finish())
            return self._encode_total() + frame.raw
        body = self._last_event = _parse_chunk(frame)
        choices = body.get("choices")
        if (text := _read_plain_text(choices)) is not None:
            self.tokens += 1
            if self.transcript is not None:
                self.transcript.add_text(text)
        else:
            if self.transcript is not None:
                self._record_event(body, self.transcript)
            for choice in choices or ():
                self.tokens += _has_output(choice)
                self._record_finished_choice(choice)
            if self._repair.repair_event(body):
                frame = Frame(encode_event(body), frame.data)
        if (usage := event_usage_to_domain(body)) is None:
            return frame.raw
        self.usage = usage
        if not choices:
            self._total = None
            # The estimate, which is also charged, replaces a usage of zero.
            is_replaced = usage == _NO_USAGE and self.prompt_tokens > 0
            return b"" if self._hide_usage or is_replaced else frame.raw
        if self._hide_progress and (usage_so_far := body.pop("usage", None)) is not None:
            self._total = {**body, "choices": [], "usage": usage_so_far}
            return encode_event(body)
        return frame.raw

    def _encode_total(self) -> bytes:
        """Encode the event with the total usage, if the client still has to receive one.

        If the back end reports no usage, the event has the estimate that is charged. The result is
        empty if the client requested no usage or has received it already.
        """
        if self._hide_usage:
            return b""
        if self._total is not None:
            return encode_event(self._total)
        if self.usage not in (None, _NO_USAGE) or not self.prompt_tokens:
            return b""
        usage = Usage(input_tokens=self.prompt_tokens, output_tokens=self.tokens)
        names = ("id", "object", "created", "model")
        first_members = {name: self._last_event[name] for name in names if name in self._last_event}
        return encode_event({**first_members, "choices": [], "usage": usage_to_client(usage)})

    def _record_finished_choice(self, choice: Any) -> None:
        if isinstance(choice, dict) and choice.get("finish_reason"):
            index = choice.get("index", 0)
            if isinstance(index, int):
                self._finished_choices.add(index)

    def _record_event(self, body: Mapping[str, Any], transcript: Transcript) -> None:
        try:
            transcript.add(self._reader.choices_to_deltas(body))
        except (KeyError, TypeError, AttributeError):
            transcript.mark_unreadable()


def _read_logprobs(choice: Mapping[str, Any]) -> tuple[chat.TokenLogprob, ...]:
    # Text completions have probabilities in another format, without this member.
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return ()
    try:
        return logprobs_to_domain(logprobs.get("content"))
    except ValueError:
        raise TypeError("logprobs must be numbers") from None


def _read_plain_text(choices: list[Any] | None) -> str | None:
    """Return the text of an event that contains only text, the most frequent kind; else None."""
    if not choices or len(choices) > 1 or not isinstance(choice := choices[0], dict):
        return None
    delta = choice.get("delta")
    if not isinstance(delta, dict) or len(delta) > 1 or choice.get("finish_reason"):
        return None
    text = delta.get("content")
    return text if isinstance(text, str) and text else None


def _has_output(choice: Any) -> bool:
    """Return True if an event's choice has new output, which is counted as one token.

    Most servers send one token per event.
    """
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return bool(
        delta.get("content")
        or delta.get("tool_calls")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
    )


def _reports_error(body: Mapping[str, Any], choices: list[Any] | None) -> bool:
    """Return True for an event with an error; OpenRouter's error events also have a choice."""
    if body.get("error") or ("error" in body and choices is None):
        return True
    return any(
        isinstance(choice, dict) and choice.get("finish_reason") == "error"
        for choice in choices or ()
    )


def _parse_chunk(frame: Frame) -> dict[str, Any]:
    body = parse_event(frame)
    choices = body.get("choices")
    if not isinstance(choices or [], list):
        raise StreamInterrupted(_MALFORMED_EVENT)
    # Most events need no closer look. Inside a text, the quotes would be escaped.
    if _ERROR_MARKER in (frame.data or b"") and _reports_error(body, choices):
        raise StreamInterrupted("the back end reported an error in its stream; retry later")
    return body
