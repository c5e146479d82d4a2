"""Translates responses, messages and usage between Ollama's format and `moyin.domain`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain import chat
from moyin.domain.money import Usage
from moyin.http.validation import (
    new_malformed_response_error,
    parse_token_count,
    parse_tool_call_arguments,
)
from moyin.text.protocol.logprobs import encode_logprobs, logprobs_to_domain

# Ollama's responses begin with the model's name.
_MODEL_NAME = re.compile(rb'\{"model":\s?("(?:[^"\\]|\\.)*")')


# The last members of a response, which the server writes after the answer.
_EVAL_DURATION = re.compile(rb'"eval_duration":\s?(\d{1,15})')
_END_BYTES = 200


def usage_to_domain(body: Mapping[str, Any]) -> Usage:
    """Translate the token counts in the last object of a response."""
    return Usage(
        input_tokens=parse_token_count(body.get("prompt_eval_count")),
        output_tokens=parse_token_count(body.get("eval_count")),
    )


def read_generation_seconds(body: bytes) -> float:
    """Return the seconds from the first token to the end of a whole response; 0 if unknown."""
    durations = _EVAL_DURATION.findall(body, max(len(body) - _END_BYTES, 0))
    return int(durations[-1]) / 1e9 if durations else 0.0


def read_stop_reason(body: Mapping[str, Any], *, has_tool_calls: bool) -> chat.StopReason:
    """Translate the stop reason in the last object of a response.

    Args:
        has_tool_calls: True if the answer has tool calls, which Ollama's stop reason does not show.
    """
    if has_tool_calls:
        return chat.StopReason.TOOL_USE
    return (
        chat.StopReason.MAX_TOKENS if body.get("done_reason") == "length" else chat.StopReason.END
    )


def chat_response_to_domain(body: Mapping[str, Any]) -> chat.ChatResponse:
    """Translate a whole response of ``/api/chat`` to a `ChatResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    message = body.get("message")
    if not isinstance(message, Mapping):
        raise new_malformed_response_error()
    parts: list[chat.Part] = []
    if message.get("thinking"):
        parts.append(chat.Thinking(text=message["thinking"]))
    if message.get("content"):
        logprobs = _read_logprobs(body)
        parts.append(chat.Text(text=message["content"], logprobs=logprobs))
    tool_calls = [_tool_call_to_domain(call) for call in message.get("tool_calls") or ()]
    return chat.ChatResponse(
        id=create_response_id(),
        model=str(body.get("model") or ""),
        parts=(*parts, *tool_calls),
        stop=read_stop_reason(body, has_tool_calls=bool(tool_calls)),
        usage=usage_to_domain(body),
    )


def _read_logprobs(body: Mapping[str, Any]) -> tuple[chat.TokenLogprob, ...]:
    try:
        return logprobs_to_domain(body.get("logprobs"))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise new_malformed_response_error() from None


def message_to_deltas(
    message: Mapping[str, Any],
    *,
    earlier_tool_count: int,
    logprobs: Iterable[Mapping[str, Any]] | None = None,
) -> list[chat.Delta]:
    """Translate the message in an object of a stream to deltas.

    Args:
        earlier_tool_count: the number of tool calls in earlier objects of the stream.
        logprobs: the object's probabilities of tokens, which belong to its text.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the object is malformed.
    """
    deltas: list[chat.Delta] = []
    if message.get("thinking"):
        deltas.append(chat.ThinkingDelta(text=message["thinking"]))
    if message.get("content"):
        token_logprobs = logprobs_to_domain(logprobs)
        deltas.append(chat.TextDelta(text=message["content"], logprobs=token_logprobs))
    for index, tool_call in enumerate(message.get("tool_calls") or (), start=earlier_tool_count):
        tool_use = _tool_call_to_domain(tool_call)
        deltas.append(chat.ToolStarted(index=index, id=tool_use.id, name=tool_use.name))
        deltas.append(chat.ToolArguments(index=index, fragment=tool_use.arguments))
    return deltas


def _tool_call_to_domain(call: Mapping[str, Any]) -> chat.ToolUse:
    function = call["function"]
    # Older servers send no id, but clients of other protocols answer a call by its id.
    call_id = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
    return chat.ToolUse(
        id=call_id, name=function["name"], arguments=to_json(function["arguments"]).decode()
    )


def create_response_id() -> str:
    """Return a new random id for a response, because Ollama's responses have no id."""
    return f"chat_{uuid.uuid4().hex}"


def rename_model(body: bytes, model: str) -> bytes:
    """Return a response, or a line of one, with ``model`` as the model's name.

    Ollama's clients compare this name with the name in their request.
    """
    name_match = _MODEL_NAME.match(body)
    if name_match is not None:
        return body[: name_match.start(1)] + to_json(model) + body[name_match.end(1) :]
    if b'"model"' not in body:
        return body
    try:
        parsed_body = from_json(body)
    except ValueError:
        return body
    if not isinstance(parsed_body, dict) or "model" not in parsed_body:
        return body
    line_end = b"\n" if body.endswith(b"\n") else b""
    return to_json({**parsed_body, "model": model}) + line_end


def build_first_members(model: str) -> dict[str, Any]:
    """Return the members with which every object of a response begins: model and time."""
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def build_last_members(
    stop: chat.StopReason, usage: Usage, *, nanoseconds: int, prompt_nanoseconds: int = 0
) -> dict[str, Any]:
    """Return the members that end the last object of a response: stop reason, counts and durations.

    Clients ignore the token counts if a duration is missing.

    Args:
        nanoseconds: the time from the request to the end of the answer.
        prompt_nanoseconds: the part of that time before the first token; 0 if unknown.
    """
    return {
        "done": True,
        "done_reason": "length" if stop is chat.StopReason.MAX_TOKENS else "stop",
        "total_duration": nanoseconds,
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": prompt_nanoseconds,
        "eval_count": usage.output_tokens,
        "eval_duration": nanoseconds - prompt_nanoseconds,
    }


def chat_response_to_client(response: chat.ChatResponse, *, model: str, nanoseconds: int) -> bytes:
    """Encode a chat response as the body of a whole response of ``/api/chat``.

    Args:
        model: the model name in the client's request.
        nanoseconds: the time from the request to the end of the answer.
    """
    message: dict[str, Any] = {"role": "assistant", "content": response.text}
    if thinking := _join_thinking(response):
        message["thinking"] = thinking
    if tool_calls := [
        tool_call_to_client(i, part) for i, part in enumerate(_select_tool_uses(response))
    ]:
        message["tool_calls"] = tool_calls
    last_members = build_last_members(response.stop, response.usage, nanoseconds=nanoseconds)
    logprobs_member = encode_logprobs_member(response.logprobs)
    return to_json(
        {**build_first_members(model), "message": message, **logprobs_member, **last_members}
    )


def generate_response_to_client(
    response: chat.ChatResponse, *, model: str, nanoseconds: int
) -> bytes:
    """Encode a chat response as the body of a whole response of ``/api/generate``.

    Args:
        model: the model name in the client's request.
        nanoseconds: the time from the request to the end of the answer.
    """
    content: dict[str, Any] = {"response": response.text}
    if thinking := _join_thinking(response):
        content["thinking"] = thinking
    content |= encode_logprobs_member(response.logprobs)
    last_members = build_last_members(response.stop, response.usage, nanoseconds=nanoseconds)
    return to_json({**build_first_members(model), **content, **last_members})


def encode_logprobs_member(token_logprobs: tuple[chat.TokenLogprob, ...]) -> dict[str, Any]:
    """Return the member ``logprobs``, or an empty dict if there are no probabilities of tokens."""
    return {"logprobs": encode_logprobs(token_logprobs)} if token_logprobs else {}


def tool_call_to_client(index: int, tool_use: chat.ToolUse) -> dict[str, Any]:
    """Encode a tool call, whose arguments are a JSON object in Ollama's format.

    Args:
        index: the position of the call among the tool calls of the answer.

    Raises:
        InvalidToolCall: the arguments are not a JSON object.
    """
    arguments = parse_tool_call_arguments(tool_use.name, tool_use.arguments)
    return {
        "id": tool_use.id,
        "function": {"index": index, "name": tool_use.name, "arguments": arguments},
    }


def _join_thinking(response: chat.ChatResponse) -> str:
    return "".join(part.text for part in response.parts if isinstance(part, chat.Thinking))


def _select_tool_uses(response: chat.ChatResponse) -> list[chat.ToolUse]:
    return [part for part in response.parts if isinstance(part, chat.ToolUse)]


def embedding_response_to_domain(body: Mapping[str, Any]) -> chat.EmbeddingResponse:
    """Translate a response of ``/api/embed`` to an `EmbeddingResponse`.

    Raises:
        BackendUnavailable: the body is malformed.
    """
    try:
        vectors = tuple(tuple(map(float, row)) for row in body["embeddings"])
    except (KeyError, TypeError, ValueError):
        raise new_malformed_response_error() from None
    usage = Usage(input_tokens=parse_token_count(body.get("prompt_eval_count")))
    return chat.EmbeddingResponse(model=str(body.get("model") or ""), vectors=vectors, usage=usage)


def embedding_response_to_client(
    response: chat.EmbeddingResponse, *, model: str, nanoseconds: int
) -> bytes:
    """Encode embeddings as the body of a response of ``/api/embed``.

    Args:
        model: the model name in the client's request.
        nanoseconds: the time from the request to the answer.
    """
    return to_json(
        {
            "model": model,
            "embeddings": response.vectors,
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": response.usage.prompt_tokens,
        }
    )
