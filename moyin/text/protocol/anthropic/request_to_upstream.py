"""Translates requests of `moyin.domain.chat` to Anthropic's format.

It also embeds pictures in requests that a client sent in this format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moyin.domain import chat
from moyin.errors import UnsupportedFeature
from moyin.http.validation import parse_arguments
from moyin.text.protocol.anthropic.response import sanitize_tool_call_id
from moyin.text.protocol.anthropic.schemas import to_claude_schema

# Anthropic requires max_tokens, which is optional in other protocols.
DEFAULT_MAX_TOKENS = 8192
_TOOL_CHOICE_TYPES = {"auto": "auto", "required": "any", "none": "none", "tool": "tool"}
# Wrong names of media types that other servers accept.
_CORRECTED_MEDIA_TYPES = {"image/jpg": "image/jpeg"}
_SUBSTITUTED_EFFORTS = {"minimal": "low", "none": "low"}


def chat_request_to_upstream(request: chat.ChatRequest) -> dict[str, Any]:
    """Translate a chat request to the body of Anthropic's ``POST /v1/messages``.

    Raises:
        UnsupportedFeature: Claude does not support a member, or the JSON schema of the answer or of
            a strict tool.
        InvalidRequest: a tool call's arguments are not a JSON object.
    """
    _refuse_unsupported_members(request)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": _encode_messages(request.messages),
        "system": _encode_parts(request.system) or None,
        "tools": [_encode_tool(tool) for tool in request.tools] or None,
        "tool_choice": _encode_tool_choice(request.tool_choice) if request.tools else None,
        "stop_sequences": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        # Claude refuses top_p together with a temperature; top_p 1 has no effect.
        "top_p": None if request.sampling.top_p == 1 else request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "thinking": _encode_thinking(request.reasoning),
        "output_config": _encode_output_config(request) or None,
        "metadata": {"user_id": request.user} if request.user else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _refuse_unsupported_members(request: chat.ChatRequest) -> None:
    sampling = request.sampling
    if sampling.temperature is not None and sampling.temperature > 1:
        raise UnsupportedFeature(
            f"temperature must be from 0 to 1 for Claude, not {sampling.temperature:g}",
            field="temperature",
        )
    if request.logprobs is not None:
        raise UnsupportedFeature(
            "logprobs are not supported by Claude: omit them", field="logprobs"
        )
    if sampling.seed is not None:
        raise UnsupportedFeature("seed is not supported by Claude: omit it", field="seed")
    for name in ("frequency_penalty", "presence_penalty", "repeat_penalty", "min_p"):
        if getattr(sampling, name):
            raise UnsupportedFeature(f"{name} is not supported by Claude: omit it", field=name)
    if request.output is not None and request.output.schema is None:
        raise UnsupportedFeature(
            "response_format: Claude guarantees JSON only with a schema; send a JSON schema",
            field="response_format",
        )


def _encode_messages(messages: Iterable[chat.Message]) -> list[dict[str, Any]]:
    """Encode the messages that are not empty, and merge neighbours of the same role."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        content = _encode_parts(message.parts)
        if not content:
            continue
        role = message.role.value
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        else:
            turns.append({"role": role, "content": content})
    return turns


def _encode_parts(parts: Iterable[chat.Part]) -> list[dict[str, Any]]:
    return [_encode_part(part) for part in parts if _is_accepted_by_claude(part)]


def _is_accepted_by_claude(part: chat.Part) -> bool:
    """Return True if Claude accepts the part.

    Claude refuses blank text, and thinking that it did not sign itself.
    """
    match part:
        case chat.Text():
            return bool(part.text.strip())
        case chat.Thinking():
            return bool(part.signature or part.redacted)
        case _:
            return True


def _encode_part(part: chat.Part) -> dict[str, Any]:
    block: dict[str, Any]
    match part:
        case chat.Text():
            return _add_cache_marker({"type": "text", "text": part.text}, part.cache)
        case chat.Image():
            return _add_cache_marker(
                {"type": "image", "source": _encode_image_source(part)}, part.cache
            )
        case chat.Document():
            block = {
                "type": "document",
                "source": {"type": "base64", "media_type": part.media_type, "data": part.data},
            }
            if part.name is not None:
                block["title"] = part.name
            return _add_cache_marker(block, part.cache)
        case chat.ToolUse():
            block = {
                "type": "tool_use",
                "id": sanitize_tool_call_id(part.id),
                "name": part.name,
                "input": parse_arguments(part.arguments),
            }
            return _add_cache_marker(block, part.cache)
        case chat.ToolResult():
            block = {"type": "tool_result", "tool_use_id": sanitize_tool_call_id(part.tool_use_id)}
            if content := _encode_parts(part.content):
                block["content"] = content
            if part.is_error:
                block["is_error"] = True
            return _add_cache_marker(block, part.cache)
        case chat.Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}


def embed_pictures(
    block: Mapping[str, Any], pictures: Mapping[str, chat.Image]
) -> Mapping[str, Any]:
    """Return a client's message or content block in which base64 replaces the URLs of pictures.

    Args:
        pictures: the fetched pictures, by the URL that the client sent.
    """
    if isinstance(block.get("content"), list):
        content = [embed_pictures(part, pictures) for part in block["content"]]
        return {**block, "content": content}
    if block.get("type") != "image":
        return block
    picture = pictures.get(block["source"].get("url"))
    if picture is None:
        return block
    source = {"type": "base64", "media_type": picture.media_type, "data": picture.data}
    return {**block, "source": source}


def _encode_image_source(image: chat.Image) -> dict[str, Any]:
    if image.url is not None:
        return {"type": "url", "url": image.url}
    media_type = image.media_type
    return {
        "type": "base64",
        "media_type": _CORRECTED_MEDIA_TYPES.get(media_type or "", media_type),
        "data": image.data,
    }


def _add_cache_marker(block: dict[str, Any], cache_ttl: str | None) -> dict[str, Any]:
    if cache_ttl is not None:
        block["cache_control"] = {"type": "ephemeral", "ttl": cache_ttl}
    return block


def _encode_tool(tool: chat.Tool) -> dict[str, Any]:
    # Claude is constrained only by the schemas of strict tools.
    schema = to_claude_schema(tool.schema, field="tools") if tool.strict else dict(tool.schema)
    body: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict is not None:
        body["strict"] = tool.strict
    return _add_cache_marker(body, tool.cache)


def _encode_tool_choice(tool_choice: chat.ToolChoice | None) -> dict[str, Any] | None:
    if tool_choice is None:
        return None
    body: dict[str, Any] = {"type": _TOOL_CHOICE_TYPES[tool_choice.mode]}
    if tool_choice.mode == "tool":
        body["name"] = tool_choice.name
    if tool_choice.parallel is not None and tool_choice.mode != "none":
        body["disable_parallel_tool_use"] = not tool_choice.parallel
    return body


def _encode_thinking(reasoning: chat.Reasoning | None) -> dict[str, Any] | None:
    if reasoning is None:
        return None
    if not reasoning.enabled:
        return {"type": "disabled"}
    # Only older models have a budget; newer ones have the effort level.
    if reasoning.adaptive or reasoning.budget is None or reasoning.effort is not None:
        return {"type": "adaptive"}
    return {"type": "enabled", "budget_tokens": reasoning.budget}


def _encode_output_config(request: chat.ChatRequest) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.reasoning is not None and request.reasoning.effort is not None:
        effort = request.reasoning.effort
        config["effort"] = _SUBSTITUTED_EFFORTS.get(effort, effort)
    if request.output is not None:
        schema = to_claude_schema(request.output.schema or {})
        config["format"] = {"type": "json_schema", "schema": schema}
    return config
