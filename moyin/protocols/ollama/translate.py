"""Chat requests and answers: the domain to Ollama's ``/api/chat`` and back. Pure.

Source: ``api/types.go`` of Ollama.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    ChatAnswer,
    ChatRequest,
    Delta,
    Image,
    Output,
    Part,
    Reasoning,
    Role,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolArguments,
    ToolResult,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.domain.needs import IMAGE_TOKENS, estimate_message, estimate_tokens
from moyin.errors import BackendUnavailable, UnsupportedFeature
from moyin.protocols.anthropic.translate import arguments_of
from moyin.protocols.validation import count

__all__ = ["answer_of", "deltas_of", "stop_of", "to_body", "usage_of", "window"]

_SMALLEST_WINDOW = 4096
# An answer of unknown length gets this much room.
_USUAL_ANSWER = 1024


def window(request: ChatRequest, context: int) -> int:
    """``num_ctx``: room for the prompt and the answer, at most ``context`` tokens.

    It grows in powers of two, because Ollama reloads the model whenever it changes.
    """
    needed = _prompt_tokens(request) + (request.max_tokens or _USUAL_ANSWER)
    size = _SMALLEST_WINDOW
    while size < needed:
        size *= 2
    return min(size, context)


def _prompt_tokens(request: ChatRequest) -> int:
    parts: list[Part] = [part for message in request.messages for part in message.parts]
    parts += [item for part in parts if isinstance(part, ToolResult) for item in part.content]
    texts = [part.text for part in (*request.system, *parts) if isinstance(part, Text | Thinking)]
    texts += [part.arguments for part in parts if isinstance(part, ToolUse)]
    texts += [to_json(_tool(tool)).decode() for tool in request.tools]
    images = sum(1 for part in parts if isinstance(part, Image))
    frame = estimate_message(len(request.messages) + 1)
    return sum(map(estimate_tokens, texts)) + images * IMAGE_TOKENS + frame


def to_body(request: ChatRequest, *, context: int, stream: bool) -> dict[str, Any]:
    """The request as ``/api/chat`` takes it.

    Raises:
        UnsupportedFeature: it asks for something that Ollama has no word for.
    """
    tools = _tools(request)
    sampling = request.sampling
    options = {
        "num_ctx": window(request, context),
        "num_predict": request.max_tokens,
        "stop": list(request.stop) or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
    }
    body = {
        "model": request.model,
        "messages": list(_messages(request)),
        "tools": [_tool(tool) for tool in tools] or None,
        "format": _format(request.output),
        "think": _think(request.reasoning),
        "options": {name: value for name, value in options.items() if value is not None},
        "stream": stream,
    }
    return {name: value for name, value in body.items() if value is not None}


def _tools(request: ChatRequest) -> Sequence[Tool]:
    choice = request.tool_choice
    if choice is None:
        return request.tools
    if choice.mode in ("required", "tool"):
        raise UnsupportedFeature("Ollama can't be made to call a tool", field="tool_choice")
    if choice.parallel is False and request.tools:
        raise UnsupportedFeature(
            "Ollama can't be kept from calling several tools", field="parallel_tool_calls"
        )
    return () if choice.mode == "none" else request.tools


def _messages(request: ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    names = {
        part.id: part.name
        for message in request.messages
        for part in message.parts
        if isinstance(part, ToolUse)
    }
    for message in request.messages:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        for result in results:
            yield _result(result, names)
        rest = [part for part in message.parts if not isinstance(part, ToolResult)]
        if rest:
            yield _message(message.role, rest)


def _result(result: ToolResult, names: Mapping[str, str]) -> dict[str, Any]:
    text = "".join(part.text for part in result.content if isinstance(part, Text))
    body: dict[str, Any] = {
        "role": "tool",
        "content": f"Error: {text}" if result.is_error else text,
        "tool_call_id": result.tool_use_id,
    }
    if name := names.get(result.tool_use_id):
        body["tool_name"] = name
    if images := [_picture(part) for part in result.content if isinstance(part, Image)]:
        body["images"] = images
    return body


def _message(role: Role, parts: Sequence[Part]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "role": role.value,
        "content": "".join(part.text for part in parts if isinstance(part, Text)),
    }
    if images := [_picture(part) for part in parts if isinstance(part, Image)]:
        body["images"] = images
    if thought := "".join(part.text for part in parts if isinstance(part, Thinking)):
        body["thinking"] = thought
    calls = [
        {"id": part.id, "function": {"name": part.name, "arguments": arguments_of(part.arguments)}}
        for part in parts
        if isinstance(part, ToolUse)
    ]
    if calls:
        body["tool_calls"] = calls
    return body


def _picture(image: Image) -> str:
    if image.data is None:
        raise UnsupportedFeature("Ollama takes pictures as base64, not by URL", field="messages")
    return image.data


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _format(output: Output | None) -> Any:
    if output is None:
        return None
    return "json" if output.schema is None else dict(output.schema)


def _think(reasoning: Reasoning | None) -> bool | None:
    # Asking a model that can't think is an error in Ollama; not asking it to is none.
    return False if reasoning is not None and not reasoning.enabled else None


def usage_of(body: Mapping[str, Any]) -> Usage:
    """The counts of a final object."""
    return Usage(
        input_tokens=count(body.get("prompt_eval_count")),
        output_tokens=count(body.get("eval_count")),
    )


def stop_of(body: Mapping[str, Any], *, used_tools: bool) -> StopReason:
    """Why a final object is the last."""
    if used_tools:
        return StopReason.TOOL_USE
    return StopReason.MAX_TOKENS if body.get("done_reason") == "length" else StopReason.END


def answer_of(body: Mapping[str, Any]) -> ChatAnswer:
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
    return ChatAnswer(
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
