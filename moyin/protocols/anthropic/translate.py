"""Message requests: Anthropic's wire shape to the domain and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.chat import (
    ChatRequest,
    Image,
    Message,
    Output,
    Part,
    Reasoning,
    Role,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.protocols.anthropic import wire

__all__ = ["DEFAULT_MAX_TOKENS", "native_field", "to_body", "to_domain"]

# Anthropic wants a limit where other protocols have none.
DEFAULT_MAX_TOKENS = 8192
# Members that change nothing in the answer: they may be dropped on the way to another protocol.
_HARMLESS = frozenset(
    {
        "betas",
        "cache_control",
        "context_management",
        "diagnostics",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}
_CHOICES_BACK = {ours: theirs for theirs, ours in _CHOICES.items()}
_EFFORTS = {"minimal": "low", "none": "low"}


def native_field(body: wire.MessagesBody) -> str | None:
    """The first member that only a back end of the same wire format can take, or None."""
    for name, value in body.extras.items():
        if value and name not in _HARMLESS:
            return name
    for number, tool in enumerate(body.tools or ()):
        if not tool.custom:
            return f"tools.{number}.type"
    for number, message in enumerate(body.messages):
        for place, block in enumerate(message.content):
            if isinstance(block, wire.OtherBlock):
                return f"messages.{number}.content.{place}.type"
    return None


def to_domain(body: wire.MessagesBody) -> ChatRequest:
    """The request in the domain's words.

    Raises:
        UnsupportedFeature: it uses a member that the domain can't carry.
    """
    if (field := native_field(body)) is not None:
        raise UnsupportedFeature(f"{field} can't be carried to this back end", field=field)
    config = body.output_config
    return ChatRequest(
        model=body.model,
        system=tuple(_system(body)),
        messages=tuple(
            Message(role=Role(message.role), parts=tuple(_parts(message)))
            for message in body.messages
            if message.role != "system"
        ),
        tools=tuple(_tool(tool) for tool in body.tools or ()),
        tool_choice=_choice(body.tool_choice),
        output=Output(schema=config.format.schema_) if config and config.format else None,
        reasoning=_reasoning(body),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        user=body.metadata.user_id if body.metadata else None,
    )


def _system(body: wire.MessagesBody) -> Iterator[Text]:
    if isinstance(body.system, str):
        yield Text(text=body.system)
    else:
        for block in body.system or ():
            yield Text(text=block.text, cache=_cache(block.cache_control))
    for message in body.messages:
        if message.role == "system":
            yield from (part for part in _parts(message) if isinstance(part, Text))


def _parts(message: wire.Message) -> Iterator[Part]:
    if isinstance(message.content, str):
        yield Text(text=message.content)
    else:
        for block in message.content:
            yield _part(block)


def _part(block: wire.Block) -> Part:
    match block:
        case wire.TextBlock():
            return Text(text=block.text, cache=_cache(block.cache_control))
        case wire.ImageBlock():
            return _image(block)
        case wire.ToolUseBlock():
            return ToolUse(
                id=block.id,
                name=block.name,
                arguments=to_json(block.input).decode(),
                cache=_cache(block.cache_control),
            )
        case wire.ToolResultBlock():
            return _result(block)
        case wire.ThinkingBlock():
            return Thinking(text=block.thinking, signature=block.signature)
        case wire.RedactedThinkingBlock():
            return Thinking(redacted=block.data)
        case _:
            raise UnsupportedFeature(f"a block of type {block.type!r}", field="messages")


def _image(block: wire.ImageBlock) -> Image:
    source = block.source
    if source.type == "file":
        raise UnsupportedFeature("an image by file id stays with Anthropic", field="messages")
    return Image(
        media_type=source.media_type,
        data=source.data,
        url=source.url,
        cache=_cache(block.cache_control),
    )


def _result(block: wire.ToolResultBlock) -> ToolResult:
    content: list[Text | Image] = []
    if isinstance(block.content, str):
        content.append(Text(text=block.content))
    else:
        for item in block.content or ():
            part = _part(item)
            assert isinstance(part, Text | Image)
            content.append(part)
    return ToolResult(
        tool_use_id=block.tool_use_id,
        content=tuple(content),
        is_error=bool(block.is_error),
        cache=_cache(block.cache_control),
    )


def _cache(control: wire.CacheControl | None) -> str | None:
    return None if control is None else control.ttl or "5m"


def _tool(tool: wire.Tool) -> Tool:
    return Tool(
        name=tool.name,
        description=tool.description,
        schema=tool.input_schema or {"type": "object", "properties": {}},
        strict=tool.strict,
        cache=_cache(tool.cache_control),
    )


def _choice(choice: wire.ToolChoice | None) -> ToolChoice | None:
    if choice is None:
        return None
    parallel = (
        None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    )
    mode: Any = _CHOICES[choice.type]
    return ToolChoice(mode=mode, name=choice.name, parallel=parallel)


def _reasoning(body: wire.MessagesBody) -> Reasoning | None:
    thinking = body.thinking
    effort = body.output_config.effort if body.output_config is not None else None
    if thinking is None:
        return None if effort is None else Reasoning(effort=effort)
    return Reasoning(
        enabled=thinking.type != "disabled",
        budget=thinking.budget_tokens,
        effort=effort,
        adaptive=thinking.type == "adaptive",
    )


def to_body(request: ChatRequest) -> dict[str, Any]:
    """The request as Anthropic takes it.

    Raises:
        UnsupportedFeature: it asks for something that Anthropic has no word for.
        InvalidRequest: a tool call's arguments are no JSON object.
    """
    _refuse_unknown(request)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": [
            {"role": message.role.value, "content": [_block(part) for part in message.parts]}
            for message in request.messages
        ],
        "system": [_block(part) for part in request.system] or None,
        "tools": [_tool_body(tool) for tool in request.tools] or None,
        "tool_choice": _choice_body(request.tool_choice) if request.tools else None,
        "stop_sequences": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
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
    for name in ("seed", "frequency_penalty", "presence_penalty"):
        if getattr(sampling, name):
            raise UnsupportedFeature(f"Claude has no {name}", field=name)
    if request.output is not None and request.output.schema is None:
        raise UnsupportedFeature("Claude needs a JSON schema", field="response_format")


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
                "id": part.id,
                "name": part.name,
                "input": arguments_of(part.arguments),
            }
            return _marked(block, part.cache)
        case ToolResult():
            block = {
                "type": "tool_result",
                "tool_use_id": part.tool_use_id,
                "content": [_block(item) for item in part.content],
            }
            if part.is_error:
                block["is_error"] = True
            return _marked(block, part.cache)
        case Thinking():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}


def arguments_of(text: str) -> dict[str, Any]:
    """The object in a tool call's JSON text; an empty text is an empty object.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    try:
        value = from_json(text) if text.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("a tool call's arguments must be a JSON object", field="messages")
    return value


def _source(image: Image) -> dict[str, Any]:
    if image.url is not None:
        return {"type": "url", "url": image.url}
    return {"type": "base64", "media_type": image.media_type, "data": image.data}


def _marked(block: dict[str, Any], cache: str | None) -> dict[str, Any]:
    if cache is not None:
        block["cache_control"] = {"type": "ephemeral", "ttl": cache}
    return block


def _tool_body(tool: Tool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": tool.name, "input_schema": dict(tool.schema)}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict is not None:
        body["strict"] = tool.strict
    return _marked(body, tool.cache)


def _choice_body(choice: ToolChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    body: dict[str, Any] = {"type": _CHOICES_BACK[choice.mode]}
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
    if reasoning.adaptive:
        return {"type": "adaptive"}
    # An effort word asks Claude for effort, not for a budget that older models only know.
    if reasoning.budget is not None and reasoning.effort is None:
        return {"type": "enabled", "budget_tokens": reasoning.budget}
    return None


def _output_config(request: ChatRequest) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.reasoning is not None and request.reasoning.effort is not None:
        effort = request.reasoning.effort
        config["effort"] = _EFFORTS.get(effort, effort)
    if request.output is not None:
        config["format"] = {"type": "json_schema", "schema": dict(request.output.schema or {})}
    return config
