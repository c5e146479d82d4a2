"""Whole chat answers: OpenAI's wire shape to the domain and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import ChatAnswer, Part, StopReason, Text, Thinking, ToolUse
from moyin.domain.money import Usage
from moyin.errors import BackendUnavailable
from moyin.http.validation import arguments_text, count, text_of

__all__ = [
    "FINISH",
    "STOP",
    "answer_of",
    "body_of",
    "complete",
    "messages_of",
    "progress_of",
    "stop_sequence_of",
    "thinking_block",
    "usage_body",
    "usage_of",
]

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


def progress_of(body: Mapping[str, Any]) -> Usage | None:
    """What an event of a stream says of the usage so far: its ``usage``, else llama.cpp's
    ``timings``; None where there is neither."""
    timings = body.get("timings")
    if not isinstance(timings, dict) or "usage" in body:
        return usage_of(body)
    return Usage(
        input_tokens=count(timings.get("prompt_n")),
        cached_tokens=count(timings.get("cache_n")),
        output_tokens=count(timings.get("predicted_n")),
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


def messages_of(body: Mapping[str, Any]) -> list[Any]:
    """What a whole answer holds: a message for each choice."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice.get("message") for choice in choices if isinstance(choice, dict)]


def complete(body: dict[str, Any]) -> bool:
    """Add to a whole answer the nullable members that OpenAI's document requires and some servers
    leave out, llama.cpp among them.

    Returns:
        Whether any was missing.
    """
    choices = body.get("choices")
    found = choices if isinstance(choices, list) else []
    missing = False
    for choice in found:
        if isinstance(choice, dict):
            missing |= _add(choice, "logprobs")
            if isinstance(message := choice.get("message"), dict):
                missing |= _add(message, "content", "refusal")
    return missing


def _add(members: dict[str, Any], *names: str) -> bool:
    missing = False
    for name in names:
        if name not in members:
            members[name] = None
            missing = True
    return missing


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
        sequence = stop_sequence_of(choice)
        if stop is StopReason.END and sequence is not None:
            stop = StopReason.STOP_SEQUENCE
        if message.get("refusal"):
            stop = StopReason.REFUSAL
        return ChatAnswer(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            parts=parts,
            stop=stop,
            stop_sequence=sequence,
            usage=usage_of(body) or Usage(),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None


def stop_sequence_of(choice: Mapping[str, Any]) -> str | None:
    """The string that ended the answer, which vLLM tells."""
    found = choice.get("stop_reason")
    return found if isinstance(found, str) else None


def _parts(message: Mapping[str, Any]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for block in message.get("thinking_blocks") or ():
        if block["type"] == "redacted_thinking":
            parts.append(Thinking(redacted=block["data"]))
        else:
            parts.append(Thinking(text=block["thinking"], signature=block["signature"]))
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought and not parts:
        parts.append(Thinking(text=str(thought)))
    if content := message.get("content") or message.get("refusal"):
        parts.append(Text(text=str(content)))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            ToolUse(
                id=str(call["id"]),
                name=text_of(function["name"]),
                arguments=arguments_text(function.get("arguments")),
            )
        )
    return tuple(parts)


def thinking_block(part: Thinking) -> dict[str, Any]:
    """A block of Claude's thinking, which the client must send back as it is."""
    if part.redacted is not None:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def body_of(answer: ChatAnswer, *, created: int) -> bytes:
    """The answer as an OpenAI client reads it; ``created`` in Unix seconds."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text or None,
        "refusal": None,
        "annotations": [],
    }
    thoughts = [part for part in answer.parts if isinstance(part, Thinking)]
    if thought := "".join(part.text for part in thoughts):
        message["reasoning_content"] = thought
    if any(part.signature or part.redacted for part in thoughts):
        message["thinking_blocks"] = [thinking_block(part) for part in thoughts]
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
