"""Translates Anthropic's message requests to `moyin.domain.chat`, and derives their needs.

The needs are the abilities and the context length that a model must have to answer a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain import chat
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

# Bytes in a serialized block that show how it contains or names its content.
_BASE64_SOURCE_MARKER = b'"type":"base64"'
_FILE_SOURCE_MARKERS = (b'"type":"file"', b'"file_id":')

# Members that translation drops, because they are hints or do not change the answer.
_DROPPED_MEMBERS = frozenset(
    {
        "betas", "cache_control", "caller", "citations", "context_management", "diagnostics",
        "eager_input_streaming", "service_tier", "speed", "unsupported_request_behavior",
        "user_profile_id", "workspace_id",
    }
)  # fmt: skip
# With these details in the error, Anthropic's SDK sends the whole conversation instead.
_THREAD_ERROR_DETAILS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
_TOOL_CHOICE_MODES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}


def find_untranslatable_field(body: wire.MessagesBody) -> str | None:
    """Return the path of the first member that a `ChatRequest` cannot express, or None."""
    if body.thinking is not None and body.thinking.display == "omitted":
        return "thinking.display"
    for number, tool in enumerate(body.tools or ()):
        if not tool.is_custom:
            return f"tools.{number}.type"
    for number, message in enumerate(body.messages):
        for block_number, block in enumerate(message.content):
            if isinstance(block, wire.OtherBlock):
                return f"messages.{number}.content.{block_number}.type"
    return find_unsupported_field(body, _DROPPED_MEMBERS)


def chat_request_to_domain(body: wire.MessagesBody) -> chat.ChatRequest:
    """Translate a message request to a `ChatRequest`.

    Raises:
        UnsupportedFeature: `ChatRequest` cannot express a member; the error names it.
        InvalidRequest: ``tool_choice`` requires a tool, but the request has none.
    """
    if (field := find_untranslatable_field(body)) is not None:
        raise UnsupportedFeature(
            f"{field} requires a back end with Anthropic's API: omit it or choose another model",
            field=field,
            details=_THREAD_ERROR_DETAILS
            if field.startswith("thread.") or field == "thread"
            else None,
        )
    output_config = body.output_config
    return chat.ChatRequest(
        model=body.model,
        system=tuple(_convert_system_prompts(body)),
        messages=tuple(
            chat.Message(role=chat.Role(message.role), parts=tuple(_convert_message(message)))
            for message in body.messages
            if message.role != "system"
        ),
        tools=tuple(_convert_tool(tool) for tool in body.tools or ()),
        tool_choice=_convert_tool_choice(body),
        output=chat.OutputFormat(schema=output_config.format.schema_)
        if output_config and output_config.format
        else None,
        reasoning=_convert_reasoning(body),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        sampling=chat.Sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        user=body.metadata.user_id if body.metadata else None,
    )


def derive_chat_needs(
    body: wire.CountBody,
    data: Mapping[str, Any],
    *,
    max_tokens: int | None,
    has_cache_markers: bool,
) -> Needs:
    """Return the abilities and the context length that a model needs for a message request.

    Args:
        max_tokens: the token limit of the answer; None for a request that only counts tokens.
        has_cache_markers: True if the request contains prompt-cache markers.
    """
    blocks = list(iterate_content_blocks(body))
    image_count = sum(1 for block in blocks if isinstance(block, wire.ImageBlock))
    tool_tokens = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    output_format = body.output_config.format if body.output_config is not None else None
    schema_bytes = 0 if output_format is None else len(to_json(output_format))
    other_blocks = [block for block in blocks if isinstance(block, wire.OtherBlock)]
    serialised_blocks = list(map(_serialize_without_base64, other_blocks))
    has_urls = any(refers_to_url(block.extras) for block in other_blocks)
    text_tokens = sum(map(estimate_tokens, _iterate_prompt_texts(body, blocks)))
    text_tokens += sum(
        estimate_tokens_from_bytes(len(serialised_block))
        for serialised_block, _ in serialised_blocks
        if _BASE64_SOURCE_MARKER not in serialised_block
    )
    attachment_sizes = [
        len(serialised_block) + size
        for serialised_block, size in serialised_blocks
        if _BASE64_SOURCE_MARKER in serialised_block
    ]
    return Needs(
        prompt_tokens=text_tokens
        + estimate_delimiter_tokens(len(body.messages))
        + image_count * IMAGE_TOKENS
        + tool_tokens,
        attachment_bytes=sum(attachment_sizes) + schema_bytes,
        has_external_content=has_urls
        or any(
            marker in serialised_block
            for serialised_block, _ in serialised_blocks
            for marker in _FILE_SOURCE_MARKERS
        )
        or any(tool.is_run_by_anthropic for tool in body.tools or ())
        or bool(body.extras.get("mcp_servers")),
        has_urls=has_urls,
        max_tokens=max_tokens,
        tools=bool(body.tools),
        vision=image_count > 0,
        schema=output_format is not None,
        thinking=body.thinking is not None and body.thinking.type != "disabled",
        has_cache_markers=has_cache_markers,
    )


def derive_chat_constraints(body: wire.MessagesBody) -> ResponseConstraints:
    """Return the constraints, such as a JSON schema, that a message request sets for its answer."""
    output_config = body.output_config
    output_format = None if output_config is None else output_config.format
    return ResponseConstraints(
        json=output_format is not None,
        schema=None if output_format is None else output_format.schema_,
        tools=frozenset(tool.name for tool in body.tools or ()),
    )


def iterate_turns_newest_first(body: wire.CountBody) -> Iterator[Turn]:
    """Yield the role and the text of each message, newest first, then the system prompt."""
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


def iterate_content_blocks(body: wire.CountBody) -> Iterator[Any]:
    """Yield the content blocks of all messages, including the blocks inside tool results."""
    for message in body.messages:
        if isinstance(message.content, str):
            continue
        for block in message.content:
            yield block
            if isinstance(block, wire.ToolResultBlock) and isinstance(block.content, list):
                yield from block.content


def refers_to_url(json_value: Any) -> bool:
    """Return True if a block's ``source``, at any depth, has a URL that a server may fetch.

    Servers do not fetch the URLs of search results, which are outside of ``source``.
    """
    if isinstance(json_value, list):
        return any(map(refers_to_url, json_value))
    if not isinstance(json_value, dict):
        return False
    source = json_value.get("source")
    has_url = isinstance(source, dict) and source.get("url") is not None
    return has_url or any(map(refers_to_url, json_value.values()))


def _serialize_without_base64(block: wire.OtherBlock) -> tuple[bytes, int]:
    """Return the JSON of a block without its base64 content, and that content's size in bytes.

    The content is not serialized, because it may be large.
    """
    source = block.extras.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return to_json(block), 0
    data = source.get("data")
    if not isinstance(data, str):
        return to_json(block), 0
    return to_json({**block.extras, "source": {**source, "data": ""}}), count_utf8_bytes(data)


def _iterate_prompt_texts(body: wire.CountBody, blocks: Iterable[Any]) -> Iterator[str]:
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


def _join_texts(content: list[Any], block_type: type[wire.TextBlock | wire.ToolResultBlock]) -> str:
    texts = (_read_block_text(block) for block in content if isinstance(block, block_type))
    return "\n".join(filter(None, texts))


def _read_block_text(block: wire.TextBlock | wire.ToolResultBlock) -> str:
    if isinstance(block, wire.TextBlock):
        return block.text
    return block.content if isinstance(block.content, str) else "(result)"


def _convert_system_prompts(body: wire.MessagesBody) -> Iterator[chat.Text]:
    if isinstance(body.system, str):
        yield chat.Text(text=body.system)
    else:
        for block in body.system or ():
            yield chat.Text(text=block.text, cache=_read_cache_ttl(block.cache_control))
    for message in body.messages:
        if message.role == "system":
            yield from (part for part in _convert_message(message) if isinstance(part, chat.Text))


def _convert_message(message: wire.Message) -> Iterator[chat.Part]:
    if isinstance(message.content, str):
        yield chat.Text(text=message.content)
    else:
        for block in message.content:
            yield _convert_block(block)


def _convert_block(block: wire.Block) -> chat.Part:
    match block:
        case wire.TextBlock():
            return chat.Text(text=block.text, cache=_read_cache_ttl(block.cache_control))
        case wire.ImageBlock():
            return _convert_image(block)
        case wire.ToolUseBlock():
            return chat.ToolUse(
                id=block.id,
                name=block.name,
                arguments=to_json(block.input).decode(),
                cache=_read_cache_ttl(block.cache_control),
            )
        case wire.ToolResultBlock():
            return _convert_tool_result(block)
        case wire.ThinkingBlock():
            return chat.Thinking(text=block.thinking, signature=block.signature)
        case wire.RedactedThinkingBlock():
            return chat.Thinking(redacted=block.data)
        case _:
            raise UnsupportedFeature(
                f"messages: {block.type!r} blocks require a back end with Anthropic's API: omit "
                "them or choose another model",
                field="messages",
            )


def _convert_image(block: wire.ImageBlock) -> chat.Image:
    source = block.source
    if source.type == "file":
        raise UnsupportedFeature(
            "messages: images by file id require a back end with Anthropic's API: send base64",
            field="messages",
        )
    return chat.Image(
        media_type=source.media_type,
        data=source.data,
        url=source.url,
        cache=_read_cache_ttl(block.cache_control),
    )


def _convert_tool_result(block: wire.ToolResultBlock) -> chat.ToolResult:
    content: list[chat.Text | chat.Image] = []
    if isinstance(block.content, str):
        content.append(chat.Text(text=block.content))
    else:
        for inner_block in block.content or ():
            part = _convert_block(inner_block)
            assert isinstance(part, chat.Text | chat.Image)
            content.append(part)
    return chat.ToolResult(
        tool_use_id=block.tool_use_id,
        content=tuple(content),
        is_error=bool(block.is_error),
        cache=_read_cache_ttl(block.cache_control),
    )


def _read_cache_ttl(cache_control: wire.CacheControl | None) -> str | None:
    return None if cache_control is None else cache_control.ttl or "5m"


def _convert_tool(tool: wire.Tool) -> chat.Tool:
    return chat.Tool(
        name=tool.name,
        description=tool.description,
        schema=tool.input_schema or {"type": "object", "properties": {}},
        strict=tool.strict,
        cache=_read_cache_ttl(tool.cache_control),
    )


def _convert_tool_choice(body: wire.CountBody) -> chat.ToolChoice | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if not body.tools and choice.type in ("any", "tool"):
        raise InvalidRequest(
            f"tool_choice {choice.type!r} requires at least one tool in tools", field="tool_choice"
        )
    allows_parallel_calls = (
        None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    )
    mode: Any = _TOOL_CHOICE_MODES[choice.type]
    return chat.ToolChoice(mode=mode, name=choice.name, parallel=allows_parallel_calls)


def _convert_reasoning(body: wire.MessagesBody) -> chat.Reasoning | None:
    thinking = body.thinking
    effort = body.output_config.effort if body.output_config is not None else None
    if thinking is None:
        return None if effort is None else chat.Reasoning(effort=effort)
    return chat.Reasoning(
        enabled=thinking.type != "disabled",
        budget=thinking.budget_tokens,
        effort=effort,
        adaptive=thinking.type == "adaptive",
    )
