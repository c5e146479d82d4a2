"""Formats conversations and answers as plain text that the judge model reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain import chat
from moyin.domain.backend import ApiFormat
from moyin.domain.money import Usage
from moyin.errors import StreamInterrupted, UnsupportedFeature
from moyin.http.sse import FrameSplitter, parse_event
from moyin.text.protocol.anthropic.stream import StreamReader as AnthropicReader
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.stream import LineSplitter
from moyin.text.protocol.openai.stream import StreamReader as OpenAIReader


def format_conversation(request: chat.ChatRequest) -> str:
    """Format the system prompts, tools and messages of a conversation as text.

    Raises:
        UnsupportedFeature: the conversation contains pictures or documents.
    """
    return "\n\n".join(_iterate_sections(request))


def _iterate_sections(request: chat.ChatRequest) -> Iterator[str]:
    if request.system:
        yield "SYSTEM:\n" + "\n\n".join(part.text for part in request.system)
    for tool in request.tools:
        yield f"TOOL {tool.name}: {tool.description or ''}".rstrip(": ")
    for message in request.messages:
        yield f"{message.role.upper()}:\n" + "\n".join(map(_format_part, message.parts))
    if request.output is not None:
        schema = request.output.schema
        requirement = "" if schema is None else f" that matches {to_json(dict(schema)).decode()}"
        yield f"The answer has to be JSON{requirement}."


def format_answer(answer: chat.ChatResponse) -> str:
    """Format the text and the tool calls of an answer as text, without its reasoning."""
    tool_calls = [_format_part(part) for part in answer.parts if isinstance(part, chat.ToolUse)]
    return "\n".join(filter(None, (answer.text.strip(), *tool_calls)))


def _format_part(part: chat.Part) -> str:
    match part:
        case chat.Text():
            return part.text
        case chat.ToolUse():
            return f"[calls the tool {part.name} with {part.arguments or '{}'}]"
        case chat.ToolResult():
            inner_text = "\n".join(map(_format_part, part.content))
            return f"[the tool {'failed' if part.is_error else 'returned'}]\n{inner_text}"
        case chat.Thinking():
            return ""
        case chat.Image() | chat.Document():
            raise UnsupportedFeature(
                "messages: the judge does not support pictures and documents", field="messages"
            )


def decode_stream(codec: ProtocolCodec, body: bytes) -> chat.ChatResponse:
    """Decode a complete stream in the client's protocol into a whole answer.

    Raises:
        MoyinError: the stream is malformed.
    """
    match codec.api_format:
        case ApiFormat.OLLAMA:
            return _join_ollama_lines(codec, body)
        case ApiFormat.RESPONSES:
            return _decode_last_response(codec, body)
        case ApiFormat.OPENAI:
            return _join_deltas(OpenAIReader().feed(body))
        case ApiFormat.ANTHROPIC:
            return _join_deltas(AnthropicReader().feed(body))


def _decode_last_response(codec: ProtocolCodec, body: bytes) -> chat.ChatResponse:
    """Decode a stream of the Responses API by its last event, which contains the whole answer."""
    for frame in reversed(FrameSplitter().feed(body)):
        if frame.data is not None:
            response = parse_event(frame).get("response")
            if isinstance(response, dict):
                return codec.read_response(response)
    raise StreamInterrupted("the sampled stream must have an event with the whole response")


def _join_deltas(deltas: list[chat.Delta]) -> chat.ChatResponse:
    texts: list[str] = []
    tool_calls: dict[int, tuple[chat.ToolStarted, list[str]]] = {}
    stop, usage = chat.StopReason.END, Usage()
    for delta in deltas:
        match delta:
            case chat.TextDelta():
                texts.append(delta.text)
            case chat.ToolStarted():
                tool_calls[delta.index] = (delta, [])
            case chat.ToolArguments() if delta.index in tool_calls:
                tool_calls[delta.index][1].append(delta.fragment)
            case chat.Finished():
                stop, usage = delta.stop, delta.usage
    parts: list[chat.Part] = [chat.Text(text="".join(texts))] if texts else []
    parts += [
        chat.ToolUse(id=tool_call.id, name=tool_call.name, arguments="".join(fragments))
        for tool_call, fragments in tool_calls.values()
    ]
    return chat.ChatResponse(id="", model="", parts=tuple(parts), stop=stop, usage=usage)


def _join_ollama_lines(codec: ProtocolCodec, body: bytes) -> chat.ChatResponse:
    """Join the lines of an Ollama stream to one answer.

    Each line contains a part of the text; the last line also contains the usage.
    """
    texts: list[str] = []
    tool_calls: list[Any] = []
    last_line: dict[str, Any] = {}
    try:
        for line in LineSplitter().feed(body):
            last_line = from_json(line)
            message = last_line.get("message", {})
            texts.append(message.get("content") or last_line.get("response") or "")
            tool_calls += message.get("tool_calls") or ()
    except (ValueError, AttributeError, TypeError):
        raise StreamInterrupted(
            "the sampled stream must consist of JSON objects in Ollama's format"
        ) from None
    message = {"role": "assistant", "content": "".join(texts), "tool_calls": tool_calls}
    try:
        return codec.read_response(
            {**last_line, "message": message, "response": message["content"]}
        )
    except (KeyError, TypeError):
        raise StreamInterrupted(
            "the sampled stream has tool calls without a name or arguments"
        ) from None
