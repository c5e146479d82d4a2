"""Translates requests from the domain to OpenAI's format, and embeds pictures in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moyin.domain.chat import (
    ChatRequest,
    EmbeddingRequest,
    Image,
    OutputFormat,
    Part,
    Reasoning,
    Role,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
)
from moyin.errors import UnsupportedFeature

__all__ = [
    "chat_request_to_upstream",
    "data_url",
    "embedding_request_to_upstream",
    "inline_pictures",
]

# Largest thinking budgets, in tokens, that each effort level stands for.
_EFFORTS = ((2048, "low"), (8192, "medium"))


def chat_request_to_upstream(request: ChatRequest, *, stream: bool) -> dict[str, Any]:
    """Translate a chat request for an OpenAI-compatible server."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": list(_messages(request)),
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "frequency_penalty": request.sampling.frequency_penalty,
        "presence_penalty": request.sampling.presence_penalty,
        "seed": request.sampling.seed,
        "tools": [_tool_body(tool) for tool in request.tools] or None,
        "response_format": _output_body(request.output),
        "reasoning_effort": _effort(request.reasoning),
        "user": request.user,
    }
    if (choice := request.tool_choice) is not None and request.tools:
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.mode == "tool" else choice.mode
        body["parallel_tool_calls"] = choice.parallel
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in body.items() if value is not None}


def embedding_request_to_upstream(request: EmbeddingRequest) -> dict[str, Any]:
    """Translate a request for embeddings for an OpenAI-compatible server."""
    body: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "encoding_format": "float",
        "dimensions": request.dimensions,
        "user": request.user,
    }
    return {name: value for name, value in body.items() if value is not None}


def inline_pictures(message: Mapping[str, Any], pictures: Mapping[str, Image]) -> dict[str, Any]:
    """Return a client's message with ``pictures``, given by their URLs, embedded in it."""
    if not isinstance(message.get("content"), list):
        return {**message}
    content = [_inline_picture(part, pictures) for part in message["content"]]
    return {**message, "content": content}


def _inline_picture(part: Mapping[str, Any], pictures: Mapping[str, Image]) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    picture = pictures.get(part["image_url"]["url"])
    if picture is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": data_url(picture)}}


def _messages(request: ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    for message in request.messages:
        if message.role is Role.ASSISTANT:
            yield _assistant_message(message.parts)
        else:
            yield from _user_messages(message.parts)


def _assistant_message(parts: Sequence[Part]) -> dict[str, Any]:
    text = "".join(part.text for part in parts if isinstance(part, Text))
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in parts
        if isinstance(part, ToolUse)
    ]
    body: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        body["tool_calls"] = calls
    if thinking := "".join(part.text for part in parts if isinstance(part, Thinking)):
        body["reasoning_content"] = thinking
    return body


def _user_messages(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Yield a message for each tool result, then the user's own message.

    Pictures in tool results go to the user's message, because a tool message holds text only.
    """
    rest: list[Part] = []
    for part in parts:
        if not isinstance(part, ToolResult):
            rest.append(part)
            continue
        text = "".join(item.text for item in part.content if isinstance(item, Text))
        rest.extend(item for item in part.content if isinstance(item, Image))
        content = f"Error: {text}" if part.is_error else text
        yield {"role": "tool", "tool_call_id": part.tool_use_id, "content": content}
    if len(rest) == 1 and isinstance(rest[0], Text):
        yield {"role": "user", "content": rest[0].text}
    elif rest:
        yield {"role": "user", "content": [_content(part) for part in rest]}


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url or data_url(part)}}
    raise UnsupportedFeature(
        f"a user's message can't contain {type(part).__name__}", field="messages"
    )


def _tool_body(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _output_body(output: OutputFormat | None) -> dict[str, Any] | None:
    if output is None:
        return None
    if output.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": output.name, "schema": dict(output.schema)}
    if output.description is not None:
        schema["description"] = output.description
    if output.strict is not None:
        schema["strict"] = output.strict
    return {"type": "json_schema", "json_schema": schema}


def _effort(reasoning: Reasoning | None) -> str | None:
    """Return the effort level.

    Disabled reasoning has none, because servers of models that never reason refuse the member.
    """
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.effort is not None:
        return reasoning.effort
    if reasoning.budget is None:
        return "medium"
    return next((level for limit, level in _EFFORTS if reasoning.budget <= limit), "high")


def data_url(image: Image) -> str:
    """Encode a picture that holds its ``data`` as a data URL."""
    return f"data:{image.media_type};base64,{image.data}"
