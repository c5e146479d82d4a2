"""Encodes the deltas of an answer as the typed events of the Responses API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolArguments,
    ToolStarted,
    ToolUse,
    UsageUpdate,
)
from moyin.http.sse import encode_event
from moyin.text.protocol.logprobs import encode_logprobs
from moyin.text.protocol.responses.response import (
    ResponseTemplate,
    encode_function_call_item,
    encode_message_item,
    encode_text_part,
)

OnEnd = Callable[[dict[str, Any], dict[str, str]], None]


@dataclass(slots=True)
class _OpenMessage:
    """A message item that is being written."""

    id: str
    index: int
    is_refusal: bool
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class _OpenReasoning:
    """A reasoning item that is being written."""

    id: str
    index: int
    texts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _OpenToolCall:
    """A tool call that is being written; ``item`` is the call without its arguments."""

    index: int
    call: ToolUse
    item: dict[str, Any]
    fragments: list[str] = field(default_factory=list)


class StreamWriter:
    """Encodes the deltas of an answer as events, numbered from 0.

    Args:
        on_end: called with the whole response object and the proofs of its reasoning, before the
            last event is returned.
    """

    def __init__(self, template: ResponseTemplate, on_end: OnEnd) -> None:
        self._template = template
        self._on_end = on_end
        self._sequence = 0
        self._model = ""
        self._output: dict[int, dict[str, Any]] = {}
        self._next_index = 0
        self._open: _OpenMessage | _OpenReasoning | None = None
        self._calls: dict[int, _OpenToolCall] = {}

    @property
    def next_number(self) -> int:
        """The sequence number of the next event."""
        return self._sequence

    def write(self, delta: Delta) -> bytes:
        """Encode ``delta`` as events, or as no bytes if the API has no event for it."""
        return b"".join(self._encode_delta(delta))

    def _encode_delta(self, delta: Delta) -> Iterator[bytes]:
        match delta:
            case Started():
                self._model = delta.model
                for name in ("created", "in_progress"):
                    response = self._template.build_started_response(self._model)
                    yield self._encode_event(f"response.{name}", {"response": response})
            case TextDelta():
                yield from self._write_text(delta)
            case ThinkingDelta():
                yield from self._write_thinking(delta)
            case ToolStarted():
                yield from self._close_open_item()
                yield self._start_call(delta)
            case ToolArguments():
                yield from self._write_arguments(delta)
            case UsageUpdate():
                return
            case Finished():
                yield from self._encode_end(delta)

    def _write_text(self, delta: TextDelta) -> Iterator[bytes]:
        message = self._open
        if not isinstance(message, _OpenMessage) or message.is_refusal is not delta.refusal:
            yield from self._close_open_item()
            message = _OpenMessage(
                self._template.new_item_id("msg"), self._take_index(), delta.refusal
            )
            self._open = message
            item = encode_message_item("", item_id=message.id)
            item |= {"status": "in_progress", "content": []}
            yield self._encode_item_event("added", message.index, item)
            part = encode_text_part("", is_refusal=message.is_refusal)
            yield self._encode_part_event("response.content_part.added", message, {"part": part})
        message.texts.append(delta.text)
        if message.is_refusal:
            yield self._encode_part_event("response.refusal.delta", message, {"delta": delta.text})
        else:
            message.logprobs.extend(delta.logprobs)
            members = {"delta": delta.text, "logprobs": encode_logprobs(delta.logprobs)}
            yield self._encode_part_event("response.output_text.delta", message, members)

    def _write_thinking(self, delta: ThinkingDelta) -> Iterator[bytes]:
        if delta.redacted is not None:
            yield from self._close_open_item()
            yield from self._start_reasoning()
            yield from self._close_reasoning(Thinking(redacted=delta.redacted))
            return
        if not isinstance(self._open, _OpenReasoning):
            yield from self._close_open_item()
            yield from self._start_reasoning()
        reasoning = self._open
        assert isinstance(reasoning, _OpenReasoning)
        if delta.text:
            if not reasoning.texts:
                yield self._encode_summary_event(
                    "part.added", reasoning, {"part": {"type": "summary_text", "text": ""}}
                )
            reasoning.texts.append(delta.text)
            yield self._encode_summary_event("text.delta", reasoning, {"delta": delta.text})
        if delta.signature is not None:
            text = "".join(reasoning.texts)
            yield from self._close_reasoning(Thinking(text=text, signature=delta.signature))

    def _start_reasoning(self) -> Iterator[bytes]:
        reasoning = _OpenReasoning(self._template.new_item_id("rs"), self._take_index())
        self._open = reasoning
        item = self._template.encode_reasoning_item(Thinking(), item_id=reasoning.id)
        item["status"] = "in_progress"
        yield self._encode_item_event("added", reasoning.index, item)

    def _close_open_item(self) -> Iterator[bytes]:
        """Yield the events that end the message or reasoning being written, if there is one."""
        match self._open:
            case _OpenMessage() as message:
                yield from self._close_message(message)
            case _OpenReasoning() as reasoning:
                yield from self._close_reasoning(Thinking(text="".join(reasoning.texts)))

    def _close_message(self, message: _OpenMessage) -> Iterator[bytes]:
        text = "".join(message.texts)
        item = encode_message_item(
            text, is_refusal=message.is_refusal, item_id=message.id, logprobs=message.logprobs
        )
        if message.is_refusal:
            yield self._encode_part_event("response.refusal.done", message, {"refusal": text})
        else:
            members = {"text": text, "logprobs": item["content"][0]["logprobs"]}
            yield self._encode_part_event("response.output_text.done", message, members)
        members = {"part": item["content"][0]}
        yield self._encode_part_event("response.content_part.done", message, members)
        yield self._encode_item_end(message.index, item)

    def _close_reasoning(self, thinking: Thinking) -> Iterator[bytes]:
        reasoning = self._open
        assert isinstance(reasoning, _OpenReasoning)
        if reasoning.texts:
            text = "".join(reasoning.texts)
            yield self._encode_summary_event("text.done", reasoning, {"text": text})
            summary = {"type": "summary_text", "text": text}
            yield self._encode_summary_event("part.done", reasoning, {"part": summary})
        item = self._template.encode_reasoning_item(thinking, item_id=reasoning.id)
        yield self._encode_item_end(reasoning.index, item)

    def _start_call(self, delta: ToolStarted) -> bytes:
        call = ToolUse(id=delta.id, name=delta.name, arguments="")
        item = encode_function_call_item(
            call,
            self._template.tools,
            item_id=self._template.new_item_id("fc"),
            status="in_progress",
        )
        index = self._take_index()
        self._calls[delta.index] = _OpenToolCall(index, call, item)
        return self._encode_item_event("added", index, item)

    def _write_arguments(self, delta: ToolArguments) -> Iterator[bytes]:
        call = self._calls[delta.index]
        call.fragments.append(delta.fragment)
        if call.item["type"] == "function_call":
            members = {"delta": delta.fragment}
            yield self._encode_call_event("response.function_call_arguments.delta", call, members)

    def _close_call(self, call: _OpenToolCall) -> Iterator[bytes]:
        arguments = "".join(call.fragments)
        finished_call = ToolUse(id=call.call.id, name=call.call.name, arguments=arguments)
        item = encode_function_call_item(
            finished_call, self._template.tools, item_id=call.item["id"]
        )
        if item["type"] == "function_call":
            members = {"arguments": arguments, "name": item["name"]}
            yield self._encode_call_event("response.function_call_arguments.done", call, members)
        else:
            # The free text can be read only once the JSON around it is complete.
            text = item["input"]
            event_prefix = "response.custom_tool_call_input"
            yield self._encode_call_event(f"{event_prefix}.delta", call, {"delta": text})
            yield self._encode_call_event(f"{event_prefix}.done", call, {"input": text})
        yield self._encode_item_end(call.index, item)

    def _encode_end(self, delta: Finished) -> Iterator[bytes]:
        yield from self._close_open_item()
        for call in self._calls.values():
            yield from self._close_call(call)
        output = [self._output[index] for index in sorted(self._output)]
        response = self._template.build_ended_response(self._model, output, delta.usage, delta.stop)
        self._on_end(response, self._template.proofs)
        yield self._encode_event(f"response.{response['status']}", {"response": response})

    def _encode_item_end(self, index: int, item: dict[str, Any]) -> bytes:
        self._open = None
        self._output[index] = item
        return self._encode_item_event("done", index, item)

    def _encode_item_event(self, name: str, index: int, item: dict[str, Any]) -> bytes:
        return self._encode_event(
            f"response.output_item.{name}", {"output_index": index, "item": item}
        )

    def _encode_part_event(
        self, name: str, message: _OpenMessage, members: dict[str, Any]
    ) -> bytes:
        position = {"item_id": message.id, "output_index": message.index, "content_index": 0}
        return self._encode_event(name, position | members)

    def _encode_summary_event(
        self, name: str, reasoning: _OpenReasoning, members: dict[str, Any]
    ) -> bytes:
        position = {"item_id": reasoning.id, "output_index": reasoning.index, "summary_index": 0}
        return self._encode_event(f"response.reasoning_summary_{name}", position | members)

    def _encode_call_event(self, name: str, call: _OpenToolCall, members: dict[str, Any]) -> bytes:
        position = {"item_id": call.item["id"], "output_index": call.index}
        return self._encode_event(name, position | members)

    def _encode_event(self, name: str, members: dict[str, Any]) -> bytes:
        sequence_number, self._sequence = self._sequence, self._sequence + 1
        return encode_event(
            {"type": name, "sequence_number": sequence_number, **members}, name=name
        )

    def _take_index(self) -> int:
        index, self._next_index = self._next_index, self._next_index + 1
        return index
