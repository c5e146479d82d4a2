"""Message requests: the domain to Anthropic's wire shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moyin.domain.chat import (
    ChatRequest,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from moyin.errors import UnsupportedFeature
from moyin.http.validation import parse_arguments
from moyin.text.protocol.anthropic.response import fitting
from moyin.text.protocol.anthropic.schemas import closed

__all__ = ["DEFAULT_MAX_TOKENS", "to_body"]

# Anthropic wants a limit where other protocols have none.
DEFAULT_MAX_TOKENS = 8192
_CHOICES = {"auto": "auto", "required": "any", "none": "none", "tool": "tool"}
# What others call a type that Claude knows by its right name.
_TYPES = {"image/jpg": "image/jpeg"}
_EFFORTS = {"minimal": "low", "none": "low"}


def to_body(request: ChatRequest) -> dict[str, Any]:
    """The request as Anthropic takes it.

    Raises:
        UnsupportedFeature: it asks for something that Anthropic has no word for, or for JSON, as
            an answer or in a strict tool, of a shape that Claude can't be bound to.
        InvalidRequest: a tool call's arguments are no JSON object.
    """
    _refuse_unknown(request)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": _messages(request.messages),
        "system": _blocks(request.system) or None,
        "tools": [_tool_body(tool) for tool in request.tools] or None,
        "tool_choice": _choice_body(request.tool_choice) if request.tools else None,
        "stop_sequences": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        # 1 is no limit, but Claude refuses it beside a temperature.
        "top_p": None if request.sampling.top_p == 1 else request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "thinking": _thinking_body(request.reasoning),
        "output_config": _output_config(request) or None,
        "metadata": {"user_id": request.user} if request.user else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _refuse_unknown(request: ChatRequest) -> None:
    sampling = request.sampling
    if sampling.temperature is not None and sampling.temperature > 1:
        raise UnsupportedFeature("Claude takes temperatures from 0 to 1", field="temperature")
    if sampling.seed is not None:
        raise UnsupportedFeature("Claude has no seed", field="seed")
    for name in ("frequency_penalty", "presence_penalty", "repeat_penalty", "min_p"):
        if getattr(sampling, name):
            raise UnsupportedFeature(f"Claude has no {name}", field=name)
    if request.output is not None and request.output.schema is None:
        raise UnsupportedFeature("Claude needs a JSON schema", field="response_format")


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Turns that alternate: those around one that holds nothing are one."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        content = _blocks(message.parts)
        if not content:
            continue
        role = message.role.value
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        else:
            turns.append({"role": role, "content": content})
    return turns


def _blocks(parts: Iterable[Part]) -> list[dict[str, Any]]:
    return [_block(part) for part in parts if _is_taken(part)]


def _is_taken(part: Part) -> bool:
    """Claude takes no text without a letter. It takes back thinking that it signed itself; what
    another model thought is not asked."""
    match part:
        case Text():
            return bool(part.text.strip())
        case Thinking():
            return bool(part.signature or part.redacted)
        case _:
            return True


def _block(part: Part) -> dict[str, Any]:
    block: dict[str, Any]
    match part:
        case Text():
            return _marked({"type": "text", "text": part.text}, part.cache)
        case Image():
            return _marked({"type": "image", "source": _source(part)}, part.cache)
        case ToolUse():
            block = {
                "type": "tool_use",
                "id": fitting(part.id),
                "name": part.name,
                "input": parse_arguments(part.arguments),
            }
            return _marked(block, part.cache)
        case ToolResult():
            block = {"type": "tool_result", "tool_use_id": fitting(part.tool_use_id)}
            if content := _blocks(part.content):
                block["content"] = content
            if part.is_error:
                block["is_error"] = True
            return _marked(block, part.cache)
        case Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}


def _source(image: Image) -> dict[str, Any]:
    if image.url is not None:
        return {"type": "url", "url": image.url}
    kind = image.media_type
    return {"type": "base64", "media_type": _TYPES.get(kind or "", kind), "data": image.data}


def _marked(block: dict[str, Any], cache: str | None) -> dict[str, Any]:
    if cache is not None:
        block["cache_control"] = {"type": "ephemeral", "ttl": cache}
    return block


def _tool_body(tool: Tool) -> dict[str, Any]:
    # Only what Claude is to be bound to must be of the few shapes that it can be.
    schema = closed(tool.schema, field="tools") if tool.strict else dict(tool.schema)
    body: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict is not None:
        body["strict"] = tool.strict
    return _marked(body, tool.cache)


def _choice_body(choice: ToolChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    body: dict[str, Any] = {"type": _CHOICES[choice.mode]}
    if choice.mode == "tool":
        body["name"] = choice.name
    if choice.parallel is not None and choice.mode != "none":
        body["disable_parallel_tool_use"] = not choice.parallel
    return body


def _thinking_body(reasoning: Reasoning | None) -> dict[str, Any] | None:
    if reasoning is None:
        return None
    if not reasoning.enabled:
        return {"type": "disabled"}
    # An effort word asks Claude for effort, not for a budget that older models only know.
    if reasoning.adaptive or reasoning.budget is None or reasoning.effort is not None:
        return {"type": "adaptive"}
    return {"type": "enabled", "budget_tokens": reasoning.budget}


def _output_config(request: ChatRequest) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.reasoning is not None and request.reasoning.effort is not None:
        effort = request.reasoning.effort
        config["effort"] = _EFFORTS.get(effort, effort)
    if request.output is not None:
        schema = closed(request.output.schema or {})
        config["format"] = {"type": "json_schema", "schema": schema}
    return config
