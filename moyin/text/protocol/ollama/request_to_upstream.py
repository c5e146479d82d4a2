"""Translates requests of `moyin.domain.chat` to Ollama's ``/api/chat`` and ``/api/embed``.

Source: ``api/types.go`` of Ollama.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.needs import IMAGE_TOKENS, estimate_delimiter_tokens, estimate_tokens
from moyin.errors import UnsupportedFeature
from moyin.http.validation import parse_arguments
from moyin.text.protocol.documents import refuse_documents

_MIN_CONTEXT_TOKENS = 4096
_ESTIMATE_MARGIN = 1.25
_THINK_LEVELS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}
# The tokens reserved for an answer whose length the client did not limit.
_TYPICAL_OUTPUT_TOKENS = 1024


def choose_context_window(prompt_tokens: int, max_tokens: int | None, context: int) -> int:
    """Return the ``num_ctx`` option for a prompt of about ``prompt_tokens`` and its answer.

    Ollama silently truncates a longer prompt, so the estimate gets a margin. The result is a power
    of two, because Ollama reloads the model whenever ``num_ctx`` changes.

    Args:
        context: the model's context length, which the result does not exceed.
    """
    needed_tokens = prompt_tokens * _ESTIMATE_MARGIN + (
        _TYPICAL_OUTPUT_TOKENS if max_tokens is None else max_tokens
    )
    window_tokens = _MIN_CONTEXT_TOKENS
    while window_tokens < needed_tokens:
        window_tokens *= 2
    return min(window_tokens, context)


def chat_request_to_upstream(
    request: chat.ChatRequest, *, context: int, stream: bool
) -> dict[str, Any]:
    """Translate a chat request to the body of ``/api/chat``.

    Args:
        context: the model's context length in tokens.
        stream: True to request a stream.

    Raises:
        UnsupportedFeature: Ollama does not support a member.
    """
    refuse_documents(request, "Ollama")
    tools = _select_tools(request)
    sampling = request.sampling
    options = {
        "num_ctx": choose_context_window(
            _estimate_prompt_tokens(request), request.max_tokens, context
        ),
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
        "messages": list(_encode_messages(request)),
        "tools": [_encode_tool(tool) for tool in tools] or None,
        "format": _encode_format(request.output),
        "think": _encode_think(request.reasoning),
        "options": {name: value for name, value in options.items() if value is not None},
        "logprobs": True if request.logprobs is not None else None,
        "top_logprobs": request.logprobs,
        "stream": stream,
    }
    return {name: value for name, value in body.items() if value is not None}


def embedding_request_to_upstream(
    request: chat.EmbeddingRequest, *, context: int
) -> dict[str, Any]:
    """Translate a request for embeddings to the body of ``/api/embed``.

    The body makes Ollama reject inputs that are too long, instead of truncating them.

    Args:
        context: the model's context length in tokens.
    """
    longest_input_tokens = max(map(estimate_tokens, request.inputs), default=0)
    body: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "truncate": False,
        "options": {"num_ctx": choose_context_window(longest_input_tokens, 0, context)},
    }
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


def _estimate_prompt_tokens(request: chat.ChatRequest) -> int:
    parts: list[chat.Part] = [part for message in request.messages for part in message.parts]
    parts += [
        inner_part
        for part in parts
        if isinstance(part, chat.ToolResult)
        for inner_part in part.content
    ]
    texts = [
        part.text
        for part in (*request.system, *parts)
        if isinstance(part, chat.Text | chat.Thinking)
    ]
    texts += [part.arguments for part in parts if isinstance(part, chat.ToolUse)]
    texts += [to_json(_encode_tool(tool)).decode() for tool in request.tools]
    image_count = sum(1 for part in parts if isinstance(part, chat.Image))
    delimiter_tokens = estimate_delimiter_tokens(len(request.messages) + 1)
    return sum(map(estimate_tokens, texts)) + image_count * IMAGE_TOKENS + delimiter_tokens


def _select_tools(request: chat.ChatRequest) -> Sequence[chat.Tool]:
    tool_choice = request.tool_choice
    if tool_choice is None:
        return request.tools
    if tool_choice.mode in ("required", "tool"):
        raise UnsupportedFeature(
            "tool_choice can't force a tool call on Ollama: use auto or none", field="tool_choice"
        )
    if tool_choice.parallel is False and request.tools:
        raise UnsupportedFeature(
            "parallel_tool_calls can't be false on Ollama: omit it", field="parallel_tool_calls"
        )
    return () if tool_choice.mode == "none" else request.tools


def _encode_messages(request: chat.ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    tool_names = {
        part.id: part.name
        for message in request.messages
        for part in message.parts
        if isinstance(part, chat.ToolUse)
    }
    for message in request.messages:
        tool_results = [part for part in message.parts if isinstance(part, chat.ToolResult)]
        for tool_result in tool_results:
            yield _encode_tool_result(tool_result, tool_names)
        other_parts = [part for part in message.parts if not isinstance(part, chat.ToolResult)]
        if other_parts:
            yield _encode_message(message.role, other_parts)


def _encode_tool_result(
    tool_result: chat.ToolResult, tool_names: Mapping[str, str]
) -> dict[str, Any]:
    text = "".join(part.text for part in tool_result.content if isinstance(part, chat.Text))
    body: dict[str, Any] = {
        "role": "tool",
        "content": f"Error: {text}" if tool_result.is_error else text,
        "tool_call_id": tool_result.tool_use_id,
    }
    if name := tool_names.get(tool_result.tool_use_id):
        body["tool_name"] = name
    if images := [
        _require_image_data(part) for part in tool_result.content if isinstance(part, chat.Image)
    ]:
        body["images"] = images
    return body


def _encode_message(role: chat.Role, parts: Sequence[chat.Part]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "role": role.value,
        "content": "".join(part.text for part in parts if isinstance(part, chat.Text)),
    }
    if images := [_require_image_data(part) for part in parts if isinstance(part, chat.Image)]:
        body["images"] = images
    if thinking := "".join(part.text for part in parts if isinstance(part, chat.Thinking)):
        body["thinking"] = thinking
    tool_calls = [
        {
            "id": part.id,
            "function": {"name": part.name, "arguments": parse_arguments(part.arguments)},
        }
        for part in parts
        if isinstance(part, chat.ToolUse)
    ]
    if tool_calls:
        body["tool_calls"] = tool_calls
    return body


def _require_image_data(image: chat.Image) -> str:
    if image.data is None:
        raise UnsupportedFeature(
            "messages: Ollama accepts pictures only as base64, not by URL: send base64",
            field="messages",
        )
    return image.data


def _encode_tool(tool: chat.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _encode_format(output: chat.OutputFormat | None) -> Any:
    if output is None:
        return None
    return "json" if output.schema is None else dict(output.schema)


def _encode_think(reasoning: chat.Reasoning | None) -> bool | str | None:
    """Return Ollama's member ``think``: an effort level, False for no thinking, or None if not set.

    An unknown effort level becomes True.
    """
    if reasoning is None:
        return None
    if not reasoning.enabled:
        return False
    return _THINK_LEVELS.get(reasoning.effort or "", True)
