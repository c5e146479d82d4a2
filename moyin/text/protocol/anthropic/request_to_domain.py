"""Translates message requests to the domain, and derives what a model needs to answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from moyin.domain.needs import (
    IMAGE_TOKENS,
    Needs,
    ResponseConstraints,
    count_utf8_bytes,
    estimate_delimiter_tokens,
    estimate_tokens,
    estimate_tokens_from_bytes,
)
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import find_unsupported_field
from moyin.text.protocol.anthropic import wire
from moyin.text.protocol.codec import Turn

__all__ = [
    "chat_constraints",
    "chat_needs",
    "chat_request_to_domain",
    "content_blocks",
    "first_untranslatable_field",
    "refers_to_url",
    "turns_backwards",
]

# Bytes in a serialised block that show where its content is.
_BASE64_SOURCE = b'"type":"base64"'
_FILE_SOURCES = (b'"type":"file"', b'"file_id":')

# Members that do not change the answer, or are only hints: translation drops them.
_HARMLESS = frozenset(
    {
        "betas", "cache_control", "caller", "citations", "context_management", "diagnostics",
        "eager_input_streaming", "service_tier", "speed", "unsupported_request_behavior",
        "user_profile_id", "workspace_id",
    }
)  # fmt: skip
# Anthropic's SDK falls back to sending the whole conversation when it reads this.
_THREADS_UNSUPPORTED = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}


def first_untranslatable_field(body: wire.MessagesBody) -> str | None:
    """Return the first member that only a back end of the same API format accepts, or None."""
    if body.thinking is not None and body.thinking.display == "omitted":
        return "thinking.display"
    for number, tool in enumerate(body.tools or ()):
        if not tool.is_custom:
            return f"tools.{number}.type"
    for number, message in enumerate(body.messages):
        for place, block in enumerate(message.content):
            if isinstance(block, wire.OtherBlock):
                return f"messages.{number}.content.{place}.type"
    return find_unsupported_field(body, _HARMLESS)


def chat_request_to_domain(body: wire.MessagesBody) -> ChatRequest:
    """Translate a message request to the domain.

    Raises:
        UnsupportedFeature: the domain has no place for a member; names that member.
    """
    if (field := first_untranslatable_field(body)) is not None:
        raise UnsupportedFeature(
            f"this back end does not support {field}",
            field=field,
            details=_THREADS_UNSUPPORTED
            if field.startswith("thread.") or field == "thread"
            else None,
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


def chat_needs(
    body: wire.CountBody,
    data: Mapping[str, Any],
    *,
    max_tokens: int | None,
    has_cache_markers: bool,
) -> Needs:
    """Return the abilities and the context that a message request needs."""
    blocks = list(content_blocks(body))
    images = sum(1 for block in blocks if isinstance(block, wire.ImageBlock))
    tools = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    form = body.output_config.format if body.output_config is not None else None
    schema = 0 if form is None else len(to_json(form))
    others = [block for block in blocks if isinstance(block, wire.OtherBlock)]
    serialised = list(map(_serialise, others))
    has_urls = any(refers_to_url(block.extras) for block in others)
    texts = sum(map(estimate_tokens, _prompt_texts(body, blocks)))
    texts += sum(
        estimate_tokens_from_bytes(len(other))
        for other, _ in serialised
        if _BASE64_SOURCE not in other
    )
    attachments = [len(other) + size for other, size in serialised if _BASE64_SOURCE in other]
    return Needs(
        prompt_tokens=texts
        + estimate_delimiter_tokens(len(body.messages))
        + images * IMAGE_TOKENS
        + tools,
        attachment_bytes=sum(attachments) + schema,
        has_external_content=has_urls
        or any(mark in other for other, _ in serialised for mark in _FILE_SOURCES)
        or any(tool.is_run_by_anthropic for tool in body.tools or ())
        or bool(body.extras.get("mcp_servers")),
        has_urls=has_urls,
        max_tokens=max_tokens,
        tools=bool(body.tools),
        vision=images > 0,
        schema=form is not None,
        thinking=body.thinking is not None and body.thinking.type != "disabled",
        has_cache_markers=has_cache_markers,
    )


def chat_constraints(body: wire.MessagesBody) -> ResponseConstraints:
    """Return the constraints that a message request sets for its response."""
    config = body.output_config
    form = None if config is None else config.format
    return ResponseConstraints(
        json=form is not None,
        schema=None if form is None else form.schema_,
        tools=frozenset(tool.name for tool in body.tools or ()),
    )


def turns_backwards(body: wire.CountBody) -> Iterator[Turn]:
    """Yield role and text, newest first, the system prompt last."""
    for message in reversed(body.messages):
        content = message.content
        if isinstance(content, str):
            yield message.role, content
            continue
        yield message.role, _join_texts(content, wire.TextBlock)
        if any(isinstance(block, wire.ToolResultBlock) for block in content):
            # A tool's result is not the user's own text.
            yield "tool", _join_texts(content, wire.ToolResultBlock)
    if isinstance(body.system, str):
        yield "system", body.system
    elif body.system:
        yield "system", "\n".join(block.text for block in body.system)


def content_blocks(body: wire.CountBody) -> Iterator[Any]:
    """Yield the blocks of all messages, and those in tool results."""
    for message in body.messages:
        if isinstance(message.content, str):
            continue
        for block in message.content:
            yield block
            if isinstance(block, wire.ToolResultBlock) and isinstance(block.content, list):
                yield from block.content


def refers_to_url(value: Any) -> bool:
    """Tell if a part of a block has a source with a URL, which a server may fetch.

    The URLs of search results are in no ``source`` and are not fetched.
    """
    if isinstance(value, list):
        return any(map(refers_to_url, value))
    if not isinstance(value, dict):
        return False
    source = value.get("source")
    has_url = isinstance(source, dict) and source.get("url") is not None
    return has_url or any(map(refers_to_url, value.values()))


def _serialise(block: wire.OtherBlock) -> tuple[bytes, int]:
    """Return the block without its base64 content, which may be large, and that content's size."""
    source = block.extras.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return to_json(block), 0
    data = source.get("data")
    if not isinstance(data, str):
        return to_json(block), 0
    return to_json({**block.extras, "source": {**source, "data": ""}}), count_utf8_bytes(data)


def _prompt_texts(body: wire.CountBody, blocks: Iterable[Any]) -> Iterator[str]:
    if isinstance(body.system, str):
        yield body.system
    else:
        for block in body.system or ():
            yield block.text
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
    for block in blocks:
        match block:
            case wire.TextBlock():
                yield block.text
            case wire.ThinkingBlock():
                yield block.thinking
            case wire.RedactedThinkingBlock():
                yield block.data
            case wire.ToolUseBlock():
                yield to_json(block.input).decode()
            case wire.ToolResultBlock() if isinstance(block.content, str):
                yield block.content


def _join_texts(content: list[Any], kind: type[wire.TextBlock | wire.ToolResultBlock]) -> str:
    texts = (_block_text(block) for block in content if isinstance(block, kind))
    return "\n".join(filter(None, texts))


def _block_text(block: wire.TextBlock | wire.ToolResultBlock) -> str:
    if isinstance(block, wire.TextBlock):
        return block.text
    return block.content if isinstance(block.content, str) else "(result)"


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
            raise UnsupportedFeature(
                f"this back end does not support blocks of type {block.type!r}", field="messages"
            )


def _image(block: wire.ImageBlock) -> Image:
    source = block.source
    if source.type == "file":
        raise UnsupportedFeature(
            "this back end does not support images by file id: send them as base64",
            field="messages",
        )
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
        raise InvalidRequest("tool_choice requires at least one tool in tools", field="tool_choice")
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
