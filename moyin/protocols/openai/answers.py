"""Whole chat answers: OpenAI's wire shape to the domain and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import ChatAnswer, Part, StopReason, Text, Thinking, ToolUse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable
from moyin.protocols.validation import count

__all__ = ["FINISH", "STOP", "answer_of", "body_of", "usage_body", "usage_of"]

FINISH = {
    StopReason.END: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_TOKENS: "length",
    StopReason.TOOL_USE: "tool_calls",
    StopReason.REFUSAL: "content_filter",
}
STOP = {
    "stop": StopReason.END,
    "length": StopReason.MAX_TOKENS,
    "tool_calls": StopReason.TOOL_USE,
    "function_call": StopReason.TOOL_USE,
    "content_filter": StopReason.REFUSAL,
}


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The ``usage`` member of an answer or of a stream's event; None where there is none."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    return Usage(
        input_tokens=max(count(usage.get("prompt_tokens")) - cached, 0),
        cached_tokens=cached,
        output_tokens=count(usage.get("completion_tokens")),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return count(details.get(name)) if isinstance(details, dict) else 0


def usage_body(usage: Usage) -> dict[str, Any]:
    """``usage`` as OpenAI writes it: the prompt counts include the cached ones."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def answer_of(body: Mapping[str, Any]) -> ChatAnswer:
    """The answer in the domain's words.

    Raises:
        BackendUnavailable: the body has not the shape of an answer.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        parts = _parts(message)
        stop = STOP.get(choice.get("finish_reason") or "stop", StopReason.END)
        if stop is StopReason.END and any(isinstance(part, ToolUse) for part in parts):
            stop = StopReason.TOOL_USE
        return ChatAnswer(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            parts=parts,
            stop=stop,
            usage=usage_of(body) or Usage(),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None


def _parts(message: Mapping[str, Any]) -> tuple[Part, ...]:
    parts: list[Part] = []
    if thought := message.get("reasoning_content") or message.get("reasoning"):
        parts.append(Thinking(text=str(thought)))
    if content := message.get("content"):
        parts.append(Text(text=str(content)))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            ToolUse(id=str(call["id"]), name=function["name"], arguments=function["arguments"])
        )
    return tuple(parts)


def body_of(answer: ChatAnswer, *, created: int) -> bytes:
    """The answer as an OpenAI client reads it; ``created`` in Unix seconds."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if thought := "".join(part.text for part in answer.parts if isinstance(part, Thinking)):
        message["reasoning_content"] = thought
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in answer.parts
        if isinstance(part, ToolUse)
    ]
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": FINISH[answer.stop],
        "logprobs": None,
    }
    return to_json(
        {
            "id": answer.id,
            "object": "chat.completion",
            "created": created,
            "model": answer.model,
            "choices": [choice],
            "usage": usage_body(answer.usage),
        }
    )
