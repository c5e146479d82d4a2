"""Whole answers: Anthropic's wire shape to the domain and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import ChatResponse, Part, StopReason, Text, Thinking, ToolResult, ToolUse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable
from moyin.http.validation import require_text, token_count, tool_call_arguments

__all__ = [
    "STOP",
    "STOP_BACK",
    "answer_of",
    "body_of",
    "fitting",
    "text_block",
    "tool_block",
    "usage_body",
    "usage_of",
]

# What an id of a tool call can't hold.
_UNFIT = re.compile(r"[^a-zA-Z0-9_-]")

STOP = {
    "end_turn": StopReason.END,
    "pause_turn": StopReason.END,
    "max_tokens": StopReason.MAX_TOKENS,
    "model_context_window_exceeded": StopReason.MAX_TOKENS,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "tool_use": StopReason.TOOL_USE,
    "refusal": StopReason.REFUSAL,
}
STOP_BACK = {
    StopReason.END: "end_turn",
    StopReason.MAX_TOKENS: "max_tokens",
    StopReason.STOP_SEQUENCE: "stop_sequence",
    StopReason.TOOL_USE: "tool_use",
    StopReason.REFUSAL: "refusal",
}


def usage_of(usage: Any, *, before: Usage | None = None) -> Usage:
    """The ``usage`` member of a message or event; counts that it leaves out are as ``before``."""
    known = before or Usage()
    if not isinstance(usage, Mapping):
        return known
    writes = usage.get("cache_creation")
    hour = known.cache_write_1h_tokens
    if isinstance(writes, Mapping):
        hour = token_count(writes.get("ephemeral_1h_input_tokens"))
    created = usage.get("cache_creation_input_tokens")
    details = usage.get("output_tokens_details")
    return Usage(
        input_tokens=_newer(usage.get("input_tokens"), known.input_tokens),
        cached_tokens=_newer(usage.get("cache_read_input_tokens"), known.cached_tokens),
        # The event that ends a stream has the total only.
        cache_write_tokens=known.cache_write_tokens
        if created is None
        else max(token_count(created) - hour, 0),
        cache_write_1h_tokens=hour,
        output_tokens=_newer(usage.get("output_tokens"), known.output_tokens),
        reasoning_tokens=token_count(details.get("thinking_tokens"))
        if isinstance(details, Mapping)
        else known.reasoning_tokens,
    )


def _newer(value: Any, known: int) -> int:
    return known if value is None else token_count(value)


def usage_body(usage: Usage) -> dict[str, Any]:
    """``usage`` as Anthropic writes it: the counts are disjoint."""
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


def answer_of(body: Mapping[str, Any]) -> ChatResponse:
    """The answer in the domain's words.

    Raises:
        BackendUnavailable: the body has not the shape of an answer.
    """
    try:
        return ChatResponse(
            id=str(body["id"]),
            model=str(body["model"]),
            parts=tuple(part for block in body["content"] if (part := _part(block)) is not None),
            stop=STOP.get(body["stop_reason"], StopReason.END),
            stop_sequence=body.get("stop_sequence"),
            usage=usage_of(body["usage"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None


def _part(block: Mapping[str, Any]) -> Part | None:
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
            # Blocks of Anthropic's own tools, which only its own wire can ask for.
            return None


def body_of(answer: ChatResponse) -> bytes:
    """The answer as an Anthropic client reads it.

    Raises:
        InvalidToolCall: the model called a tool with something else than an object.
    """
    return to_json(
        {
            "id": answer.id,
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": [_block(part) for part in answer.parts],
            "stop_reason": STOP_BACK[answer.stop],
            "stop_sequence": answer.stop_sequence,
            "stop_details": None,
            "container": None,
            "usage": usage_body(answer.usage),
        }
    )


def text_block(text: str) -> dict[str, Any]:
    """Return a block of text. Its ``citations`` are an empty list: Anthropic's document requires the
    member, and the Vercel AI SDK refuses null."""
    return {"type": "text", "text": text, "citations": []}


def fitting(identity: str) -> str:
    """The id of a tool call as Anthropic takes it. Other servers' may hold what its can't."""
    return _UNFIT.sub("_", identity) or "_"


def tool_block(identity: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a client's tool."""
    return {
        "type": "tool_use",
        "id": fitting(identity),
        "name": name,
        "input": arguments,
        "caller": {"type": "direct"},
    }


def _block(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return text_block(part.text)
        case ToolUse():
            return tool_block(part.id, part.name, tool_call_arguments(part.name, part.arguments))
        case Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}
        case _:
            raise _not_an_answer(part)


def _not_an_answer(part: object) -> BackendUnavailable:
    assert not isinstance(part, ToolResult), "only clients send tool results"
    return BackendUnavailable(f"a model can't answer with {type(part).__name__}")
