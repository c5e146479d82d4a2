"""Message requests: Anthropic's wire shape to the domain. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    ChatRequest,
    Image,
    Message,
    OutputFormat,
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
from moyin.http.validation import unsupported_field
from moyin.text.protocol.anthropic import wire

__all__ = ["native_field", "to_domain"]

# Members that change nothing in the answer, or only hint: they may be dropped on the way to another
# protocol.
_HARMLESS = frozenset(
    {
        "betas", "cache_control", "caller", "citations", "context_management", "diagnostics",
        "eager_input_streaming", "service_tier", "speed", "unsupported_request_behavior",
        "user_profile_id", "workspace_id",
    }
)  # fmt: skip
# What Anthropic's SDK wants to read to go on without a conversation that the server holds.
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}


def native_field(body: wire.MessagesBody) -> str | None:
    """The first member that only a back end of the same wire format can take, or None."""
    if body.thinking is not None and body.thinking.display == "omitted":
        return "thinking.display"
    for number, tool in enumerate(body.tools or ()):
        if not tool.custom:
            return f"tools.{number}.type"
    for number, message in enumerate(body.messages):
        for place, block in enumerate(message.content):
            if isinstance(block, wire.OtherBlock):
                return f"messages.{number}.content.{place}.type"
    return unsupported_field(body, _HARMLESS)


def to_domain(body: wire.MessagesBody) -> ChatRequest:
    """The request in the domain's words.

    Raises:
        UnsupportedFeature: it uses a member that the domain can't carry.
    """
    if (field := native_field(body)) is not None:
        raise UnsupportedFeature(
            f"{field} can't be carried to this back end",
            field=field,
            details=_NO_THREADS if field.startswith("thread.") or field == "thread" else None,
        )
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
        tool_choice=_choice(body),
        output=OutputFormat(schema=config.format.schema_) if config and config.format else None,
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


def _choice(body: wire.CountBody) -> ToolChoice | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if not body.tools and choice.type in ("any", "tool"):
        raise InvalidRequest("tool_choice needs tools", field="tool_choice")
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
