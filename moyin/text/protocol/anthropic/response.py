"""Translates whole responses and usage between Anthropic's format and `moyin.domain`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import ChatResponse, Part, StopReason, Text, Thinking, ToolUse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable
from moyin.http.validation import (
    new_malformed_response_error,
    parse_token_count,
    parse_tool_call_arguments,
    require_text,
)

# Anthropic refuses these characters in the id of a tool call.
_INVALID_ID_CHARACTERS = re.compile(r"[^a-zA-Z0-9_-]")

STOP_REASONS = {
    "end_turn": StopReason.END,
    "pause_turn": StopReason.END,
    "max_tokens": StopReason.MAX_TOKENS,
    "model_context_window_exceeded": StopReason.MAX_TOKENS,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "tool_use": StopReason.TOOL_USE,
    "refusal": StopReason.REFUSAL,
}
WIRE_STOP_REASONS = {
    StopReason.END: "end_turn",
    StopReason.MAX_TOKENS: "max_tokens",
    StopReason.STOP_SEQUENCE: "stop_sequence",
    StopReason.TOOL_USE: "tool_use",
    StopReason.REFUSAL: "refusal",
}


def usage_to_domain(usage: Any, *, earlier_usage: Usage | None = None) -> Usage:
    """Translate the ``usage`` of a response or an event.

    Args:
        earlier_usage: usage of an earlier event, from which missing counts are taken.
    """
    default_usage = earlier_usage or Usage()
    if not isinstance(usage, Mapping):
        return default_usage
    cache_writes = usage.get("cache_creation")
    cache_write_1h_tokens = default_usage.cache_write_1h_tokens
    if isinstance(cache_writes, Mapping):
        cache_write_1h_tokens = parse_token_count(cache_writes.get("ephemeral_1h_input_tokens"))
    all_cache_write_tokens = usage.get("cache_creation_input_tokens")
    details = usage.get("output_tokens_details")
    return Usage(
        input_tokens=_read_count(usage.get("input_tokens"), default_usage.input_tokens),
        cached_tokens=_read_count(
            usage.get("cache_read_input_tokens"), default_usage.cached_tokens
        ),
        # The last event of a stream reports only the total of both kinds of cache writes.
        cache_write_tokens=default_usage.cache_write_tokens
        if all_cache_write_tokens is None
        else max(parse_token_count(all_cache_write_tokens) - cache_write_1h_tokens, 0),
        cache_write_1h_tokens=cache_write_1h_tokens,
        output_tokens=_read_count(usage.get("output_tokens"), default_usage.output_tokens),
        reasoning_tokens=parse_token_count(details.get("thinking_tokens"))
        if isinstance(details, Mapping)
        else default_usage.reasoning_tokens,
    )


def _read_count(value: Any, default: int) -> int:
    return default if value is None else parse_token_count(value)


def usage_to_client(usage: Usage) -> dict[str, Any]:
    """Encode ``usage`` in Anthropic's format, whose input tokens do not include cached tokens."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


def chat_response_to_domain(body: Mapping[str, Any]) -> ChatResponse:
    """Translate a whole response of ``POST /v1/messages`` to a `ChatResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        return ChatResponse(
            id=str(body["id"]),
            model=str(body["model"]),
            parts=tuple(
                part for block in body["content"] if (part := _block_to_part(block)) is not None
            ),
            stop=STOP_REASONS.get(body["stop_reason"], StopReason.END),
            stop_sequence=body.get("stop_sequence"),
            usage=usage_to_domain(body["usage"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise new_malformed_response_error() from None


def _block_to_part(block: Mapping[str, Any]) -> Part | None:
    match block["type"]:
        case "text":
            return Text(text=require_text(block["text"]))
        case "tool_use":
            arguments = to_json(block["input"]).decode()
            return ToolUse(id=block["id"], name=block["name"], arguments=arguments)
        case "thinking":
            return Thinking(text=require_text(block["thinking"]), signature=block.get("signature"))
        case "redacted_thinking":
            return Thinking(redacted=block["data"])
        case _:
            # Blocks of Anthropic's own tools, which other formats cannot request.
            return None


def chat_response_to_client(response: ChatResponse) -> bytes:
    """Encode a chat response as the body of a response to Anthropic's client.

    Raises:
        InvalidToolCall: the arguments of a tool call are not a JSON object.
    """
    return to_json(
        {
            "id": response.id,
            "type": "message",
            "role": "assistant",
            "model": response.model,
            "content": [_part_to_block(part) for part in response.parts],
            "stop_reason": WIRE_STOP_REASONS[response.stop],
            "stop_sequence": response.stop_sequence,
            "stop_details": None,
            "container": None,
            "usage": usage_to_client(response.usage),
        }
    )


def encode_text_block(text: str) -> dict[str, Any]:
    """Encode a text block.

    ``citations`` is an empty list, because Anthropic's API reference requires the member and the
    Vercel AI SDK refuses null.
    """
    return {"type": "text", "text": text, "citations": []}


def sanitize_tool_call_id(tool_call_id: str) -> str:
    """Replace the characters that Anthropic refuses in the id of a tool call.

    The id may come from another server, whose ids have other characters.
    """
    return _INVALID_ID_CHARACTERS.sub("_", tool_call_id) or "_"


def encode_tool_use_block(
    tool_call_id: str, name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Encode the model's call of a client's tool as a ``tool_use`` block."""
    return {
        "type": "tool_use",
        "id": sanitize_tool_call_id(tool_call_id),
        "name": name,
        "input": arguments,
        "caller": {"type": "direct"},
    }


def _part_to_block(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return encode_text_block(part.text)
        case ToolUse():
            return encode_tool_use_block(
                part.id, part.name, parse_tool_call_arguments(part.name, part.arguments)
            )
        case Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}
        case _:
            part_type = type(part).__name__
            raise BackendUnavailable(
                f"the back end's answer must not contain a part of type {part_type}"
            )
