"""Chat requests: the domain to OpenAI's wire shape. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moyin.domain.chat import (
    ChatRequest,
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

__all__ = ["data_url", "to_body"]

# Thinking budgets, in tokens, at which an effort word stands for what was asked.
_EFFORTS = ((2048, "low"), (8192, "medium"))


def to_body(request: ChatRequest, *, stream: bool) -> dict[str, Any]:
    """The request as an OpenAI-compatible server takes it."""
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


def _messages(request: ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    for message in request.messages:
        if message.role is Role.ASSISTANT:
            yield _assistant(message.parts)
        else:
            yield from _user(message.parts)


def _assistant(parts: Sequence[Part]) -> dict[str, Any]:
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
    if thought := "".join(part.text for part in parts if isinstance(part, Thinking)):
        body["reasoning_content"] = thought
    return body


def _user(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Tool results first, each a message of its own; pictures in them go to the user's turn,
    since a tool message holds text only."""
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
    raise UnsupportedFeature(f"a user's turn can't hold {type(part).__name__}", field="messages")


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
    """A word for the effort. That of none at all is left out: servers and models refuse it that don't
    think in any case."""
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.effort is not None:
        return reasoning.effort
    if reasoning.budget is None:
        return "medium"
    return next((word for limit, word in _EFFORTS if reasoning.budget <= limit), "high")


def data_url(image: Image) -> str:
    """A picture that holds its ``data``, as a URL."""
    return f"data:{image.media_type};base64,{image.data}"
