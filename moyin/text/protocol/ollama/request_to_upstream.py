"""Translates requests from the domain to Ollama's ``/api/chat`` and ``/api/embed``.

Source: ``api/types.go`` of Ollama.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

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
from moyin.domain.needs import IMAGE_TOKENS, estimate_delimiter_tokens, estimate_tokens
from moyin.errors import UnsupportedFeature
from moyin.http.validation import parse_arguments

__all__ = ["chat_request_to_upstream", "context_window", "embedding_request_to_upstream"]

_MIN_WINDOW = 4096
_MARGIN = 1.25
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
# Tokens that are reserved for an answer of unknown length.
_TYPICAL_OUTPUT_TOKENS = 1024


def context_window(prompt_tokens: int, max_tokens: int | None, context: int) -> int:
    """Return ``num_ctx`` for an estimated prompt and its answer, at most ``context`` tokens.

    Ollama silently truncates a prompt that does not fit, so the estimate gets a margin. The window
    grows in powers of two, because Ollama reloads the model whenever it changes.
    """
    needed = prompt_tokens * _MARGIN + (
        _TYPICAL_OUTPUT_TOKENS if max_tokens is None else max_tokens
    )
    size = _MIN_WINDOW
    while size < needed:
        size *= 2
    return min(size, context)


def chat_request_to_upstream(request: ChatRequest, *, context: int, stream: bool) -> dict[str, Any]:
    """Translate a chat request for ``/api/chat``.

    Raises:
        UnsupportedFeature: Ollama does not support a member.
    """
    tools = _tools(request)
    sampling = request.sampling
    options = {
        "num_ctx": context_window(_prompt_tokens(request), request.max_tokens, context),
        "num_predict": request.max_tokens,
        "stop": list(request.stop) or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repeat_penalty": sampling.repeat_penalty,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
    }
    body = {
        "model": request.model,
        "messages": list(_messages(request)),
        "tools": [_tool(tool) for tool in tools] or None,
        "format": _format(request.output),
        "think": _think(request.reasoning),
        "options": {name: value for name, value in options.items() if value is not None},
        "stream": stream,
    }
    return {name: value for name, value in body.items() if value is not None}


def embedding_request_to_upstream(request: EmbeddingRequest, *, context: int) -> dict[str, Any]:
    """Translate a request for ``/api/embed``, which rejects inputs that are too long."""
    longest = max(map(estimate_tokens, request.inputs), default=0)
    body: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "truncate": False,
        "options": {"num_ctx": context_window(longest, 0, context)},
    }
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


def _prompt_tokens(request: ChatRequest) -> int:
    parts: list[Part] = [part for message in request.messages for part in message.parts]
    parts += [item for part in parts if isinstance(part, ToolResult) for item in part.content]
    texts = [part.text for part in (*request.system, *parts) if isinstance(part, Text | Thinking)]
    texts += [part.arguments for part in parts if isinstance(part, ToolUse)]
    texts += [to_json(_tool(tool)).decode() for tool in request.tools]
    images = sum(1 for part in parts if isinstance(part, Image))
    frame = estimate_delimiter_tokens(len(request.messages) + 1)
    return sum(map(estimate_tokens, texts)) + images * IMAGE_TOKENS + frame


def _tools(request: ChatRequest) -> Sequence[Tool]:
    choice = request.tool_choice
    if choice is None:
        return request.tools
    if choice.mode in ("required", "tool"):
        raise UnsupportedFeature("Ollama does not support forced tool calls", field="tool_choice")
    if choice.parallel is False and request.tools:
        raise UnsupportedFeature(
            "Ollama can't limit the answer to one tool call", field="parallel_tool_calls"
        )
    return () if choice.mode == "none" else request.tools


def _messages(request: ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    names = {
        part.id: part.name
        for message in request.messages
        for part in message.parts
        if isinstance(part, ToolUse)
    }
    for message in request.messages:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        for result in results:
            yield _result(result, names)
        rest = [part for part in message.parts if not isinstance(part, ToolResult)]
        if rest:
            yield _message(message.role, rest)


def _result(result: ToolResult, names: Mapping[str, str]) -> dict[str, Any]:
    text = "".join(part.text for part in result.content if isinstance(part, Text))
    body: dict[str, Any] = {
        "role": "tool",
        "content": f"Error: {text}" if result.is_error else text,
        "tool_call_id": result.tool_use_id,
    }
    if name := names.get(result.tool_use_id):
        body["tool_name"] = name
    if images := [_image_data(part) for part in result.content if isinstance(part, Image)]:
        body["images"] = images
    return body


def _message(role: Role, parts: Sequence[Part]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "role": role.value,
        "content": "".join(part.text for part in parts if isinstance(part, Text)),
    }
    if images := [_image_data(part) for part in parts if isinstance(part, Image)]:
        body["images"] = images
    if thinking := "".join(part.text for part in parts if isinstance(part, Thinking)):
        body["thinking"] = thinking
    calls = [
        {
            "id": part.id,
            "function": {"name": part.name, "arguments": parse_arguments(part.arguments)},
        }
        for part in parts
        if isinstance(part, ToolUse)
    ]
    if calls:
        body["tool_calls"] = calls
    return body


def _image_data(image: Image) -> str:
    if image.data is None:
        raise UnsupportedFeature(
            "Ollama accepts pictures as base64 only, not by URL", field="messages"
        )
    return image.data


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _format(output: OutputFormat | None) -> Any:
    if output is None:
        return None
    return "json" if output.schema is None else dict(output.schema)


def _think(reasoning: Reasoning | None) -> bool | str | None:
    """Return the level if Ollama knows it, else True.

    Models without levels treat any level as True.
    """
    if reasoning is None:
        return None
    if not reasoning.enabled:
        return False
    return _LEVELS.get(reasoning.effort or "", True)
