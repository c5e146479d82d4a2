"""Whole answers: Ollama's wire shapes to the domain and back. Pure."""

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
from moyin.errors import BackendUnavailable
from moyin.http.validation import token_count, tool_call_arguments

__all__ = [
    "answer_of",
    "call_body",
    "chat_body",
    "deltas_of",
    "embed_answer",
    "embed_body",
    "final",
    "generate_body",
    "head",
    "new_id",
    "stop_of",
    "usage_of",
]


def usage_of(body: Mapping[str, Any]) -> Usage:
    """The counts of a final object."""
    return Usage(
        input_tokens=token_count(body.get("prompt_eval_count")),
        output_tokens=token_count(body.get("eval_count")),
    )


def stop_of(body: Mapping[str, Any], *, used_tools: bool) -> StopReason:
    """Why a final object is the last."""
    if used_tools:
        return StopReason.TOOL_USE
    return StopReason.MAX_TOKENS if body.get("done_reason") == "length" else StopReason.END


def answer_of(body: Mapping[str, Any]) -> ChatResponse:
    """The whole answer in the domain's words.

    Raises:
        BackendUnavailable: the body has not the shape of an answer.
    """
    message = body.get("message")
    if not isinstance(message, Mapping):
        raise BackendUnavailable("the back end's answer has not the shape of one")
    parts: list[Part] = []
    if message.get("thinking"):
        parts.append(Thinking(text=message["thinking"]))
    if message.get("content"):
        parts.append(Text(text=message["content"]))
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    return ChatResponse(
        id=new_id(),
        model=str(body.get("model") or ""),
        parts=(*parts, *calls),
        stop=stop_of(body, used_tools=bool(calls)),
        usage=usage_of(body),
    )


def deltas_of(message: Mapping[str, Any], *, tools_before: int) -> list[Delta]:
    """What one object of a stream adds. Ollama sends tool calls whole."""
    deltas: list[Delta] = []
    if message.get("thinking"):
        deltas.append(ThinkingDelta(text=message["thinking"]))
    if message.get("content"):
        deltas.append(TextDelta(text=message["content"]))
    for index, call in enumerate(message.get("tool_calls") or (), start=tools_before):
        use = _call(call)
        deltas.append(ToolStarted(index=index, id=use.id, name=use.name))
        deltas.append(ToolArguments(index=index, fragment=use.arguments))
    return deltas


def _call(call: Mapping[str, Any]) -> ToolUse:
    function = call["function"]
    # Older servers number no calls, but clients need an id to answer to.
    identity = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
    return ToolUse(
        id=identity, name=function["name"], arguments=to_json(function["arguments"]).decode()
    )


def new_id() -> str:
    """An id for an answer, since Ollama gives none."""
    return f"chat_{uuid.uuid4().hex}"


def head(model: str) -> dict[str, Any]:
    """What every object of an answer begins with."""
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def final(stop: StopReason, usage: Usage, *, nanoseconds: int, reading: int = 0) -> dict[str, Any]:
    """Return what the last object of an answer ends with. Clients lose the counts where a duration is
    missing.

    Args:
        nanoseconds: from the request to the end of the answer.
        reading: the part of it before the first word; 0: unknown.
    """
    return {
        "done": True,
        "done_reason": "length" if stop is StopReason.MAX_TOKENS else "stop",
        "total_duration": nanoseconds,
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": reading,
        "eval_count": usage.output_tokens,
        "eval_duration": nanoseconds - reading,
    }


def chat_body(answer: ChatResponse, *, nanoseconds: int) -> bytes:
    """The answer as a client of ``/api/chat`` reads it."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if thought := _thought(answer):
        message["thinking"] = thought
    if calls := [call_body(i, part) for i, part in enumerate(_uses(answer))]:
        message["tool_calls"] = calls
    end = final(answer.stop, answer.usage, nanoseconds=nanoseconds)
    return to_json({**head(answer.model), "message": message, **end})


def generate_body(answer: ChatResponse, *, nanoseconds: int) -> bytes:
    """The answer as a client of ``/api/generate`` reads it."""
    said: dict[str, Any] = {"response": answer.text}
    if thought := _thought(answer):
        said["thinking"] = thought
    end = final(answer.stop, answer.usage, nanoseconds=nanoseconds)
    return to_json({**head(answer.model), **said, **end})


def call_body(index: int, use: ToolUse) -> dict[str, Any]:
    """A tool call as Ollama writes it: whole, its arguments an object.

    Raises:
        InvalidToolCall: the model wrote something else.
    """
    arguments = tool_call_arguments(use.name, use.arguments)
    return {"id": use.id, "function": {"index": index, "name": use.name, "arguments": arguments}}


def _thought(answer: ChatResponse) -> str:
    return "".join(part.text for part in answer.parts if isinstance(part, Thinking))


def _uses(answer: ChatResponse) -> list[ToolUse]:
    return [part for part in answer.parts if isinstance(part, ToolUse)]


def embed_answer(body: Mapping[str, Any]) -> EmbeddingResponse:
    """A server's answer to ``/api/embed`` in the domain's words.

    Raises:
        BackendUnavailable: it has not the shape of one.
    """
    try:
        vectors = tuple(tuple(map(float, row)) for row in body["embeddings"])
    except (KeyError, TypeError, ValueError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None
    usage = Usage(input_tokens=token_count(body.get("prompt_eval_count")))
    return EmbeddingResponse(model=str(body.get("model") or ""), vectors=vectors, usage=usage)


def embed_body(answer: EmbeddingResponse, *, nanoseconds: int) -> bytes:
    """The answer as a client of ``/api/embed`` reads it."""
    return to_json(
        {
            "model": answer.model,
            "embeddings": answer.vectors,
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": answer.usage.prompt_tokens,
        }
    )
