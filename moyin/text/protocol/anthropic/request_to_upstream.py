"""Translates requests from the domain to Anthropic's format, and embeds pictures in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from moyin.text.protocol.anthropic.response import to_tool_call_id
from moyin.text.protocol.anthropic.schemas import to_claude_schema

__all__ = ["DEFAULT_MAX_TOKENS", "chat_request_to_upstream", "inline_pictures"]

# Anthropic requires a limit, which is optional in other protocols.
DEFAULT_MAX_TOKENS = 8192
_CHOICES = {"auto": "auto", "required": "any", "none": "none", "tool": "tool"}
# Media types that other servers accept under a wrong name.
_MEDIA_TYPES = {"image/jpg": "image/jpeg"}
_EFFORTS = {"minimal": "low", "none": "low"}


def chat_request_to_upstream(request: ChatRequest) -> dict[str, Any]:
    """Translate a chat request for Anthropic.

    Raises:
        UnsupportedFeature: Anthropic does not support a member, or Claude does not support the
            JSON schema of the answer or of a strict tool.
        InvalidRequest: a tool call's arguments are not a JSON object.
    """
    _check_supported(request)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": _messages(request.messages),
        "system": _blocks(request.system) or None,
        "tools": [_tool_body(tool) for tool in request.tools] or None,
        "tool_choice": _choice_body(request.tool_choice) if request.tools else None,
        "stop_sequences": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        # 1 does not limit, but Claude refuses it together with a temperature.
        "top_p": None if request.sampling.top_p == 1 else request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "thinking": _thinking_body(request.reasoning),
        "output_config": _output_config(request) or None,
        "metadata": {"user_id": request.user} if request.user else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _check_supported(request: ChatRequest) -> None:
    sampling = request.sampling
    if sampling.temperature is not None and sampling.temperature > 1:
        raise UnsupportedFeature(
            "Claude supports temperatures from 0 to 1 only", field="temperature"
        )
    if sampling.seed is not None:
        raise UnsupportedFeature("Claude does not support seed", field="seed")
    for name in ("frequency_penalty", "presence_penalty", "repeat_penalty", "min_p"):
        if getattr(sampling, name):
            raise UnsupportedFeature(f"Claude does not support {name}", field=name)
    if request.output is not None and request.output.schema is None:
        raise UnsupportedFeature(
            "Claude needs a JSON schema in response_format", field="response_format"
        )


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Encode turns that alternate: turns around an empty one are merged."""
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
    return [_block(part) for part in parts if _is_accepted(part)]


def _is_accepted(part: Part) -> bool:
    """Tell if Claude accepts the part: not blank text, and only thinking that it signed itself."""
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
            return _with_cache({"type": "text", "text": part.text}, part.cache)
        case Image():
            return _with_cache({"type": "image", "source": _source(part)}, part.cache)
        case ToolUse():
            block = {
                "type": "tool_use",
                "id": to_tool_call_id(part.id),
                "name": part.name,
                "input": parse_arguments(part.arguments),
            }
            return _with_cache(block, part.cache)
        case ToolResult():
            block = {"type": "tool_result", "tool_use_id": to_tool_call_id(part.tool_use_id)}
            if content := _blocks(part.content):
                block["content"] = content
            if part.is_error:
                block["is_error"] = True
            return _with_cache(block, part.cache)
        case Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}


def inline_pictures(block: Mapping[str, Any], pictures: Mapping[str, Image]) -> Mapping[str, Any]:
    """Return a client's message, or a block, with ``pictures``, given by their URLs, embedded."""
    if isinstance(block.get("content"), list):
        content = [inline_pictures(part, pictures) for part in block["content"]]
        return {**block, "content": content}
    if block.get("type") != "image":
        return block
    picture = pictures.get(block["source"].get("url"))
    if picture is None:
        return block
    source = {"type": "base64", "media_type": picture.media_type, "data": picture.data}
    return {**block, "source": source}


def _source(image: Image) -> dict[str, Any]:
    if image.url is not None:
        return {"type": "url", "url": image.url}
    kind = image.media_type
    return {"type": "base64", "media_type": _MEDIA_TYPES.get(kind or "", kind), "data": image.data}


def _with_cache(block: dict[str, Any], cache: str | None) -> dict[str, Any]:
    if cache is not None:
        block["cache_control"] = {"type": "ephemeral", "ttl": cache}
    return block


def _tool_body(tool: Tool) -> dict[str, Any]:
    # Claude is constrained by the schema of a strict tool only.
    schema = to_claude_schema(tool.schema, field="tools") if tool.strict else dict(tool.schema)
    body: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict is not None:
        body["strict"] = tool.strict
    return _with_cache(body, tool.cache)


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
    # An effort level replaces the budget, which is for older models only.
    if reasoning.adaptive or reasoning.budget is None or reasoning.effort is not None:
        return {"type": "adaptive"}
    return {"type": "enabled", "budget_tokens": reasoning.budget}


def _output_config(request: ChatRequest) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.reasoning is not None and request.reasoning.effort is not None:
        effort = request.reasoning.effort
        config["effort"] = _EFFORTS.get(effort, effort)
    if request.output is not None:
        schema = to_claude_schema(request.output.schema or {})
        config["format"] = {"type": "json_schema", "schema": schema}
    return config
