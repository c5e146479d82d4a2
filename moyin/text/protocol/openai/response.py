"""Translates whole responses and usage between OpenAI's format and `moyin.domain`."""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.http.validation import (
    arguments_to_text,
    new_malformed_response_error,
    parse_token_count,
    require_text,
)
from moyin.text.protocol.logprobs import encode_logprobs, logprobs_to_domain

FINISH_REASONS = {
    chat.StopReason.END: "stop",
    chat.StopReason.STOP_SEQUENCE: "stop",
    chat.StopReason.MAX_TOKENS: "length",
    chat.StopReason.TOOL_USE: "tool_calls",
    chat.StopReason.REFUSAL: "content_filter",
}
STOP_REASONS = {
    "stop": chat.StopReason.END,
    "length": chat.StopReason.MAX_TOKENS,
    "tool_calls": chat.StopReason.TOOL_USE,
    "function_call": chat.StopReason.TOOL_USE,
    "content_filter": chat.StopReason.REFUSAL,
}


def usage_to_domain(body: Mapping[str, Any]) -> Usage | None:
    """Translate the ``usage`` member of a response or an event; return None if it is missing."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    cached_tokens = _read_token_detail(usage, "prompt_tokens_details", "cached_tokens")
    return Usage(
        input_tokens=max(parse_token_count(usage.get("prompt_tokens")) - cached_tokens, 0),
        cached_tokens=cached_tokens,
        output_tokens=parse_token_count(usage.get("completion_tokens")),
        reasoning_tokens=_read_token_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def event_usage_to_domain(body: Mapping[str, Any]) -> Usage | None:
    """Translate the usage that an event of a stream reports; return None if it reports none.

    The event has it in ``usage`` or, from llama.cpp, in ``timings``. It covers the stream so far.
    """
    timings = body.get("timings")
    if not isinstance(timings, dict) or "usage" in body:
        return usage_to_domain(body)
    return Usage(
        input_tokens=parse_token_count(timings.get("prompt_n")),
        cached_tokens=parse_token_count(timings.get("cache_n")),
        output_tokens=parse_token_count(timings.get("predicted_n")),
    )


def _read_token_detail(usage: Mapping[str, Any], details_name: str, name: str) -> int:
    details = usage.get(details_name)
    return parse_token_count(details.get(name)) if isinstance(details, dict) else 0


def usage_to_client(usage: Usage) -> dict[str, Any]:
    """Encode ``usage``; OpenAI's ``prompt_tokens`` include the cached tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def list_choice_messages(body: Mapping[str, Any]) -> list[Any]:
    """Return the messages of all choices of a whole response."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice.get("message") for choice in choices if isinstance(choice, dict)]


def add_required_members(body: dict[str, Any]) -> bool:
    """Add missing members that OpenAI's API reference requires in a whole response, as null.

    Some servers, such as llama.cpp, omit them.

    Returns:
        True if a member was missing.
    """
    choices = body.get("choices")
    is_incomplete = False
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            is_incomplete |= _add_missing_nulls(choice, "logprobs")
            if isinstance(message := choice.get("message"), dict):
                is_incomplete |= _add_missing_nulls(message, "content", "refusal")
                is_incomplete |= _complete_tool_calls(choice, message)
    return is_incomplete


def new_tool_call_id() -> str:
    """Return a new id for a tool call that the back end sent without an id."""
    return f"call_{secrets.token_hex(12)}"


def _complete_tool_calls(choice: dict[str, Any], message: Mapping[str, Any]) -> bool:
    """Add the ids and types that Gemini omits in tool calls, and correct their finish reason.

    Gemini ends tool calls with the finish reason ``stop``, so that agents stop instead of calling
    the tool. OpenAI, too, uses ``stop``, but only if the client forced the call. Such a client
    reads the call whatever the reason is, so ``stop`` can always be replaced.

    Returns:
        True if a member was added or changed.
    """
    tool_calls = message.get("tool_calls")
    if not isinstance(tool_calls, list) or not tool_calls:
        return False
    is_incomplete = False
    for tool_call in tool_calls:
        if isinstance(tool_call, dict) and not (tool_call.get("id") and tool_call.get("type")):
            tool_call["id"] = tool_call.get("id") or new_tool_call_id()
            tool_call["type"] = tool_call.get("type") or "function"
            is_incomplete = True
    if choice.get("finish_reason") == "stop":
        choice["finish_reason"] = "tool_calls"
        is_incomplete = True
    return is_incomplete


def _add_missing_nulls(members: dict[str, Any], *names: str) -> bool:
    is_missing = False
    for name in names:
        if name not in members:
            members[name] = None
            is_missing = True
    return is_missing


def chat_response_to_domain(body: Mapping[str, Any]) -> chat.ChatResponse:
    """Translate a whole response of ``POST /v1/chat/completions`` to a `ChatResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        parts = _message_to_parts(message, choice.get("logprobs"))
        stop = STOP_REASONS.get(choice.get("finish_reason") or "stop", chat.StopReason.END)
        if stop is chat.StopReason.END and any(isinstance(part, chat.ToolUse) for part in parts):
            stop = chat.StopReason.TOOL_USE
        stop_sequence = read_stop_sequence(choice)
        if stop is chat.StopReason.END and stop_sequence is not None:
            stop = chat.StopReason.STOP_SEQUENCE
        if message.get("refusal"):
            stop = chat.StopReason.REFUSAL
        return chat.ChatResponse(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            parts=parts,
            stop=stop,
            stop_sequence=stop_sequence,
            usage=usage_to_domain(body) or Usage(),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise new_malformed_response_error() from None


def read_stop_sequence(choice: Mapping[str, Any]) -> str | None:
    """Return the stop sequence that ended the answer, as vLLM reports it, or None."""
    reason = choice.get("stop_reason")
    return reason if isinstance(reason, str) else None


def _message_to_parts(
    message: Mapping[str, Any], logprobs: Mapping[str, Any] | None
) -> tuple[chat.Part, ...]:
    parts: list[chat.Part] = []
    for block in message.get("thinking_blocks") or ():
        if block["type"] == "redacted_thinking":
            parts.append(chat.Thinking(redacted=block["data"]))
        else:
            parts.append(chat.Thinking(text=block["thinking"], signature=block["signature"]))
    thinking, text = split_content(message.get("content"))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thinking
    if reasoning and not parts:
        parts.append(chat.Thinking(text=str(reasoning)))
    if text:
        token_logprobs = logprobs_to_domain((logprobs or {}).get("content"))
        parts.append(chat.Text(text=text, logprobs=token_logprobs))
    if refusal := message.get("refusal"):
        parts.append(chat.Text(text=str(refusal), refusal=True))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            chat.ToolUse(
                id=str(call.get("id") or new_tool_call_id()),
                name=require_text(function["name"]),
                arguments=arguments_to_text(function.get("arguments")),
            )
        )
    return tuple(parts)


def split_content(content: Any) -> tuple[str, str]:
    """Return the thinking and the text in the ``content`` of a message or of an event.

    The content is a text, or a list of parts if a Mistral model thinks.

    Raises:
        KeyError, TypeError: the content is malformed.
    """
    if not isinstance(content, list):
        return "", "" if content is None else require_text(content)
    thinking_texts: list[str] = []
    texts: list[str] = []
    for part in content:
        match part["type"]:
            case "text":
                texts.append(require_text(part["text"]))
            case "thinking":
                thinking_texts += (
                    require_text(thinking_part["text"]) for thinking_part in part["thinking"]
                )
    return "".join(thinking_texts), "".join(texts)


def encode_thinking_block(part: chat.Thinking) -> dict[str, Any]:
    """Encode a block of Claude's thinking; clients return it unchanged in their next request."""
    if part.redacted is not None:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def encode_choice_logprobs(token_logprobs: tuple[chat.TokenLogprob, ...]) -> dict[str, Any] | None:
    """Encode the member ``logprobs`` of a choice: null if there are no probabilities."""
    return {"content": encode_logprobs(token_logprobs), "refusal": None} if token_logprobs else None


def chat_response_to_client(response: chat.ChatResponse, *, created: int) -> bytes:
    """Encode a chat response as the body of a response to OpenAI's client.

    Args:
        created: the time of the response in Unix seconds.
    """
    message: dict[str, Any] = {
        "role": "assistant",
        "content": response.text or None,
        "refusal": None,
        "annotations": [],
    }
    thinking_parts = [part for part in response.parts if isinstance(part, chat.Thinking)]
    if thinking_text := "".join(part.text for part in thinking_parts):
        message["reasoning_content"] = thinking_text
    if any(part.signature or part.redacted for part in thinking_parts):
        message["thinking_blocks"] = [encode_thinking_block(part) for part in thinking_parts]
    tool_calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in response.parts
        if isinstance(part, chat.ToolUse)
    ]
    if tool_calls:
        message["tool_calls"] = tool_calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": FINISH_REASONS[response.stop],
        "logprobs": encode_choice_logprobs(response.logprobs),
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


def embedding_response_to_domain(body: Any) -> chat.EmbeddingResponse:
    """Translate a response of ``POST /v1/embeddings`` to an `EmbeddingResponse`.

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
    return chat.EmbeddingResponse(model=model, vectors=vectors, usage=usage)


def embedding_response_to_client(response: chat.EmbeddingResponse, *, as_base64: bool) -> bytes:
    """Encode embeddings as the body of a response to OpenAI's client.

    Args:
        as_base64: True to encode each vector as base64 instead of a list of numbers.
    """
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encode_vector_base64(vector) if as_base64 else vector,
        }
        for index, vector in enumerate(response.vectors)
    ]
    prompt_tokens = response.usage.prompt_tokens
    usage: Mapping[str, int] = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return to_json({"object": "list", "data": rows, "model": response.model, "usage": usage})


def _encode_vector_base64(vector: tuple[float, ...]) -> str:
    """Encode a vector as OpenAI does: little-endian 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
