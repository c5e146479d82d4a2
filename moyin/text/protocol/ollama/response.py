"""Translates responses and usage between Ollama's format and the domain."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    ChatResponse,
    Delta,
    EmbeddingResponse,
    Part,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.http.validation import (
    new_malformed_response_error,
    parse_token_count,
    parse_tool_call_arguments,
)

__all__ = [
    "chat_response_to_client",
    "chat_response_to_domain",
    "embedding_response_to_client",
    "embedding_response_to_domain",
    "first_members",
    "generate_response_to_client",
    "last_members",
    "message_to_deltas",
    "new_response_id",
    "stop_reason",
    "tool_call_to_client",
    "usage_to_domain",
]


def usage_to_domain(body: Mapping[str, Any]) -> Usage:
    """Read the token counts of a response's last object."""
    return Usage(
        input_tokens=parse_token_count(body.get("prompt_eval_count")),
        output_tokens=parse_token_count(body.get("eval_count")),
    )


def stop_reason(body: Mapping[str, Any], *, used_tools: bool) -> StopReason:
    """Read the stop reason of a response's last object."""
    if used_tools:
        return StopReason.TOOL_USE
    return StopReason.MAX_TOKENS if body.get("done_reason") == "length" else StopReason.END


def chat_response_to_domain(body: Mapping[str, Any]) -> ChatResponse:
    """Translate Ollama's whole response to the domain.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    message = body.get("message")
    if not isinstance(message, Mapping):
        raise new_malformed_response_error()
    parts: list[Part] = []
    if message.get("thinking"):
        parts.append(Thinking(text=message["thinking"]))
    if message.get("content"):
        parts.append(Text(text=message["content"]))
    calls = [_tool_call(call) for call in message.get("tool_calls") or ()]
    return ChatResponse(
        id=new_response_id(),
        model=str(body.get("model") or ""),
        parts=(*parts, *calls),
        stop=stop_reason(body, used_tools=bool(calls)),
        usage=usage_to_domain(body),
    )


def message_to_deltas(message: Mapping[str, Any], *, tools_before: int) -> list[Delta]:
    """Translate the message of a stream's object. Ollama sends tool calls whole.

    Args:
        tools_before: the number of tool calls in earlier objects.
    """
    deltas: list[Delta] = []
    if message.get("thinking"):
        deltas.append(ThinkingDelta(text=message["thinking"]))
    if message.get("content"):
        deltas.append(TextDelta(text=message["content"]))
    for index, call in enumerate(message.get("tool_calls") or (), start=tools_before):
        use = _tool_call(call)
        deltas.append(ToolStarted(index=index, id=use.id, name=use.name))
        deltas.append(ToolArguments(index=index, fragment=use.arguments))
    return deltas


def _tool_call(call: Mapping[str, Any]) -> ToolUse:
    function = call["function"]
    # Older servers send no id, but clients need one to answer the call.
    identity = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
    return ToolUse(
        id=identity, name=function["name"], arguments=to_json(function["arguments"]).decode()
    )


def new_response_id() -> str:
    """Create an id for a response, since Ollama sends none."""
    return f"chat_{uuid.uuid4().hex}"


def first_members(model: str) -> dict[str, Any]:
    """Return the members that every object of a response begins with."""
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def last_members(
    stop: StopReason, usage: Usage, *, nanoseconds: int, prompt_nanoseconds: int = 0
) -> dict[str, Any]:
    """Return the members that the last object of a response ends with.

    Clients ignore the token counts if a duration is missing.

    Args:
        nanoseconds: from the request to the end of the answer.
        prompt_nanoseconds: the part of it before the first token; 0: unknown.
    """
    return {
        "done": True,
        "done_reason": "length" if stop is StopReason.MAX_TOKENS else "stop",
        "total_duration": nanoseconds,
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": prompt_nanoseconds,
        "eval_count": usage.output_tokens,
        "eval_duration": nanoseconds - prompt_nanoseconds,
    }


def chat_response_to_client(response: ChatResponse, *, nanoseconds: int) -> bytes:
    """Encode a response for a client of ``/api/chat``."""
    message: dict[str, Any] = {"role": "assistant", "content": response.text}
    if thinking := _thinking(response):
        message["thinking"] = thinking
    if calls := [tool_call_to_client(i, part) for i, part in enumerate(_tool_uses(response))]:
        message["tool_calls"] = calls
    end = last_members(response.stop, response.usage, nanoseconds=nanoseconds)
    return to_json({**first_members(response.model), "message": message, **end})


def generate_response_to_client(response: ChatResponse, *, nanoseconds: int) -> bytes:
    """Encode a response for a client of ``/api/generate``."""
    content: dict[str, Any] = {"response": response.text}
    if thinking := _thinking(response):
        content["thinking"] = thinking
    end = last_members(response.stop, response.usage, nanoseconds=nanoseconds)
    return to_json({**first_members(response.model), **content, **end})


def tool_call_to_client(index: int, use: ToolUse) -> dict[str, Any]:
    """Encode a whole tool call; Ollama's arguments are an object.

    Raises:
        InvalidToolCall: the arguments are not a JSON object.
    """
    arguments = parse_tool_call_arguments(use.name, use.arguments)
    return {"id": use.id, "function": {"index": index, "name": use.name, "arguments": arguments}}


def _thinking(response: ChatResponse) -> str:
    return "".join(part.text for part in response.parts if isinstance(part, Thinking))


def _tool_uses(response: ChatResponse) -> list[ToolUse]:
    return [part for part in response.parts if isinstance(part, ToolUse)]


def embedding_response_to_domain(body: Mapping[str, Any]) -> EmbeddingResponse:
    """Translate a response of ``/api/embed`` to the domain.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        vectors = tuple(tuple(map(float, row)) for row in body["embeddings"])
    except (KeyError, TypeError, ValueError):
        raise new_malformed_response_error() from None
    usage = Usage(input_tokens=parse_token_count(body.get("prompt_eval_count")))
    return EmbeddingResponse(model=str(body.get("model") or ""), vectors=vectors, usage=usage)


def embedding_response_to_client(response: EmbeddingResponse, *, nanoseconds: int) -> bytes:
    """Encode embeddings for a client of ``/api/embed``."""
    return to_json(
        {
            "model": response.model,
            "embeddings": response.vectors,
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": response.usage.prompt_tokens,
        }
    )
