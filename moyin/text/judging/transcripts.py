"""Writes conversations and answers as plain text for a judge to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Delta,
    Finished,
    Image,
    Part,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ToolArguments,
    ToolResult,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.errors import StreamInterrupted, UnsupportedFeature
from moyin.http.sse import FrameSplitter, parse_event
from moyin.text.protocol.anthropic.stream import StreamReader as AnthropicReader
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.stream import LineSplitter
from moyin.text.protocol.openai.stream import StreamReader as OpenAIReader

__all__ = ["answer_text", "conversation_text", "streamed_answer"]


def conversation_text(request: ChatRequest) -> str:
    """Return the text of the conversation up to the answer.

    Raises:
        UnsupportedFeature: it contains pictures.
    """
    return "\n\n".join(_sections(request))


def _sections(request: ChatRequest) -> Iterator[str]:
    if request.system:
        yield "SYSTEM:\n" + "\n\n".join(part.text for part in request.system)
    for tool in request.tools:
        yield f"TOOL {tool.name}: {tool.description or ''}".rstrip(": ")
    for message in request.messages:
        yield f"{message.role.upper()}:\n" + "\n".join(map(_part_text, message.parts))
    if request.output is not None:
        schema = request.output.schema
        requirement = "" if schema is None else f" that matches {to_json(dict(schema)).decode()}"
        yield f"The answer has to be JSON{requirement}."


def answer_text(answer: ChatResponse) -> str:
    """Return the text of an answer as the client sees it, without reasoning."""
    calls = [_part_text(part) for part in answer.parts if isinstance(part, ToolUse)]
    return "\n".join(filter(None, (answer.text.strip(), *calls)))


def _part_text(part: Part) -> str:
    match part:
        case Text():
            return part.text
        case ToolUse():
            return f"[calls the tool {part.name} with {part.arguments or '{}'}]"
        case ToolResult():
            inner = "\n".join(map(_part_text, part.content))
            return f"[the tool {'failed' if part.is_error else 'returned'}]\n{inner}"
        case Thinking():
            return ""
        case Image():
            raise UnsupportedFeature("the judge does not support pictures", field="messages")


def streamed_answer(codec: ProtocolCodec, body: bytes) -> ChatResponse:
    """Return the whole answer of a complete stream in the client's protocol.

    Raises:
        MoyinError: the stream is malformed.
    """
    match codec.api_format:
        case ApiFormat.OLLAMA:
            return _join_lines(codec, body)
        case ApiFormat.RESPONSES:
            return _last_response(codec, body)
        case ApiFormat.OPENAI:
            return _join_deltas(OpenAIReader().feed(body))
        case ApiFormat.ANTHROPIC:
            return _join_deltas(AnthropicReader().feed(body))


def _last_response(codec: ProtocolCodec, body: bytes) -> ChatResponse:
    """Read the response object in the last event that has one."""
    for frame in reversed(FrameSplitter().feed(body)):
        if frame.data is not None:
            response = parse_event(frame).get("response")
            if isinstance(response, dict):
                return codec.read_response(response)
    raise StreamInterrupted("the stream has no event with the response")


def _join_deltas(deltas: list[Delta]) -> ChatResponse:
    texts: list[str] = []
    calls: dict[int, tuple[ToolStarted, list[str]]] = {}
    stop, usage = StopReason.END, Usage()
    for delta in deltas:
        match delta:
            case TextDelta():
                texts.append(delta.text)
            case ToolStarted():
                calls[delta.index] = (delta, [])
            case ToolArguments() if delta.index in calls:
                calls[delta.index][1].append(delta.fragment)
            case Finished():
                stop, usage = delta.stop, delta.usage
    parts: list[Part] = [Text(text="".join(texts))] if texts else []
    parts += [
        ToolUse(id=call.id, name=call.name, arguments="".join(fragments))
        for call, fragments in calls.values()
    ]
    return ChatResponse(id="", model="", parts=tuple(parts), stop=stop, usage=usage)


def _join_lines(codec: ProtocolCodec, body: bytes) -> ChatResponse:
    """Join Ollama's lines: each repeats the same members, and the last one has the rest."""
    texts: list[str] = []
    calls: list[Any] = []
    last: dict[str, Any] = {}
    try:
        for line in LineSplitter().feed(body):
            last = from_json(line)
            message = last.get("message", {})
            texts.append(message.get("content") or last.get("response") or "")
            calls += message.get("tool_calls") or ()
    except (ValueError, AttributeError, TypeError):
        raise StreamInterrupted("the stream has malformed lines") from None
    message = {"role": "assistant", "content": "".join(texts), "tool_calls": calls}
    try:
        return codec.read_response({**last, "message": message, "response": message["content"]})
    except (KeyError, TypeError):
        raise StreamInterrupted("the stream has malformed tool calls") from None
