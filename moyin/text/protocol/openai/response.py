"""Translates whole responses and usage between OpenAI's format and the domain."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    ChatResponse,
    EmbeddingResponse,
    Part,
    StopReason,
    Text,
    Thinking,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.http.validation import (
    arguments_to_text,
    new_malformed_response_error,
    parse_token_count,
    require_text,
)

__all__ = [
    "FINISH_REASONS",
    "STOP_REASONS",
    "add_required_members",
    "chat_response_to_client",
    "chat_response_to_domain",
    "choice_messages",
    "embedding_response_to_client",
    "embedding_response_to_domain",
    "progress_to_domain",
    "stop_sequence",
    "thinking_block",
    "usage_to_client",
    "usage_to_domain",
]

FINISH_REASONS = {
    StopReason.END: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_TOKENS: "length",
    StopReason.TOOL_USE: "tool_calls",
    StopReason.REFUSAL: "content_filter",
}
STOP_REASONS = {
    "stop": StopReason.END,
    "length": StopReason.MAX_TOKENS,
    "tool_calls": StopReason.TOOL_USE,
    "function_call": StopReason.TOOL_USE,
    "content_filter": StopReason.REFUSAL,
}


def usage_to_domain(body: Mapping[str, Any]) -> Usage | None:
    """Read the ``usage`` member of a response or of a stream's event; None if it has none."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    return Usage(
        input_tokens=max(parse_token_count(usage.get("prompt_tokens")) - cached, 0),
        cached_tokens=cached,
        output_tokens=parse_token_count(usage.get("completion_tokens")),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def progress_to_domain(body: Mapping[str, Any]) -> Usage | None:
    """Read the usage so far from an event of a stream.

    It is in ``usage``, else in llama.cpp's ``timings``; None if the event has neither.
    """
    timings = body.get("timings")
    if not isinstance(timings, dict) or "usage" in body:
        return usage_to_domain(body)
    return Usage(
        input_tokens=parse_token_count(timings.get("prompt_n")),
        cached_tokens=parse_token_count(timings.get("cache_n")),
        output_tokens=parse_token_count(timings.get("predicted_n")),
    )


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return parse_token_count(details.get(name)) if isinstance(details, dict) else 0


def usage_to_client(usage: Usage) -> dict[str, Any]:
    """Encode ``usage``; OpenAI's prompt tokens include the cached ones."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def choice_messages(body: Mapping[str, Any]) -> list[Any]:
    """Return the message of each choice of a whole response."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice.get("message") for choice in choices if isinstance(choice, dict)]


def add_required_members(body: dict[str, Any]) -> bool:
    """Add the nullable members that OpenAI's document requires to a whole response.

    Some servers, llama.cpp among them, leave them out.

    Returns:
        True if any was missing.
    """
    choices = body.get("choices")
    is_incomplete = False
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            is_incomplete |= _add_nulls(choice, "logprobs")
            if isinstance(message := choice.get("message"), dict):
                is_incomplete |= _add_nulls(message, "content", "refusal")
    return is_incomplete


def _add_nulls(members: dict[str, Any], *names: str) -> bool:
    missing = False
    for name in names:
        if name not in members:
            members[name] = None
            missing = True
    return missing


def chat_response_to_domain(body: Mapping[str, Any]) -> ChatResponse:
    """Translate a back end's chat response to the domain.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        parts = _parts(message)
        stop = STOP_REASONS.get(choice.get("finish_reason") or "stop", StopReason.END)
        if stop is StopReason.END and any(isinstance(part, ToolUse) for part in parts):
            stop = StopReason.TOOL_USE
        sequence = stop_sequence(choice)
        if stop is StopReason.END and sequence is not None:
            stop = StopReason.STOP_SEQUENCE
        if message.get("refusal"):
            stop = StopReason.REFUSAL
        return ChatResponse(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            parts=parts,
            stop=stop,
            stop_sequence=sequence,
            usage=usage_to_domain(body) or Usage(),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise new_malformed_response_error() from None


def stop_sequence(choice: Mapping[str, Any]) -> str | None:
    """Return the string that ended the answer, which vLLM reports in ``stop_reason``."""
    reason = choice.get("stop_reason")
    return reason if isinstance(reason, str) else None


def _parts(message: Mapping[str, Any]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for block in message.get("thinking_blocks") or ():
        if block["type"] == "redacted_thinking":
            parts.append(Thinking(redacted=block["data"]))
        else:
            parts.append(Thinking(text=block["thinking"], signature=block["signature"]))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning and not parts:
        parts.append(Thinking(text=str(reasoning)))
    if content := message.get("content") or message.get("refusal"):
        parts.append(Text(text=str(content)))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            ToolUse(
                id=str(call["id"]),
                name=require_text(function["name"]),
                arguments=arguments_to_text(function.get("arguments")),
            )
        )
    return tuple(parts)


def thinking_block(part: Thinking) -> dict[str, Any]:
    """Encode a block of Claude's thinking, which the client must send back unchanged."""
    if part.redacted is not None:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def chat_response_to_client(response: ChatResponse, *, created: int) -> bytes:
    """Encode a chat response for an OpenAI client; ``created`` is in Unix seconds."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": response.text or None,
        "refusal": None,
        "annotations": [],
    }
    thinking = [part for part in response.parts if isinstance(part, Thinking)]
    if text := "".join(part.text for part in thinking):
        message["reasoning_content"] = text
    if any(part.signature or part.redacted for part in thinking):
        message["thinking_blocks"] = [thinking_block(part) for part in thinking]
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in response.parts
        if isinstance(part, ToolUse)
    ]
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": FINISH_REASONS[response.stop],
        "logprobs": None,
    }
    return to_json(
        {
            "id": response.id,
            "object": "chat.completion",
            "created": created,
            "model": response.model,
            "choices": [choice],
            "usage": usage_to_client(response.usage),
        }
    )


def embedding_response_to_domain(body: Any) -> EmbeddingResponse:
    """Translate a back end's embeddings to the domain.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        rows = sorted(body["data"], key=lambda row: row["index"])
        vectors = tuple(tuple(map(float, row["embedding"])) for row in rows)
        model = str(body.get("model", ""))
        usage = usage_to_domain(body) or Usage()
    except (KeyError, TypeError, AttributeError, ValueError):
        raise new_malformed_response_error() from None
    return EmbeddingResponse(model=model, vectors=vectors, usage=usage)


def embedding_response_to_client(response: EmbeddingResponse, *, as_base64: bool) -> bytes:
    """Encode embeddings for an OpenAI client."""
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _pack_vector(vector) if as_base64 else vector,
        }
        for index, vector in enumerate(response.vectors)
    ]
    tokens = response.usage.prompt_tokens
    usage: Mapping[str, int] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": rows, "model": response.model, "usage": usage})


def _pack_vector(vector: tuple[float, ...]) -> str:
    """Encode little-endian 32-bit floats as base64, as OpenAI does."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
