"""Translates OpenAI's requests to the domain, and derives what a model needs to answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import (
    ChatRequest,
    EmbeddingRequest,
    Image,
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
    UNCONSTRAINED,
    Needs,
    ResponseConstraints,
    count_utf8_bytes,
    estimate_delimiter_tokens,
    estimate_tokens,
)
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import find_unsupported_field
from moyin.text.protocol.codec import merge_turns
from moyin.text.protocol.openai import wire

__all__ = [
    "chat_constraints",
    "chat_needs",
    "chat_request_to_domain",
    "content_parts",
    "embedding_needs",
    "embedding_request_to_domain",
    "first_untranslatable_field",
    "message_text",
]

# Bytes that show, without a walk over the body, that a member may be there: inside a JSON string
# the quotes would be escaped.
_CACHE_MARKER = b'"cache_control"'
_AUDIO_MEMBER = b'"audio"'

# Members that do not change the answer, or are only hints: translation drops them.
_HARMLESS = frozenset(
    {
        "annotations", "detail", "index", "metadata", "name", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "provider_specific_fields", "reasoning",
        "refusal", "safety_identifier", "service_tier", "store",
    }
)  # fmt: skip
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}


def first_untranslatable_field(body: wire.ChatBody) -> str | None:
    """Return the first member that only a back end of the same API format accepts, or None."""
    if body.n is not None and body.n > 1:
        return "n"
    for number, message in enumerate(body.messages):
        content = message.content
        if isinstance(content, list):
            for place, part in enumerate(content):
                if isinstance(part, wire.OtherPart) and part.type != "refusal":
                    return f"messages.{number}.content.{place}"
    # Every model writes with medium verbosity by default.
    is_default = body.extras.get("verbosity") == "medium"
    return find_unsupported_field(body, _HARMLESS | {"verbosity"} if is_default else _HARMLESS)


def chat_request_to_domain(body: wire.ChatBody) -> ChatRequest:
    """Translate a chat completion to the domain.

    Raises:
        UnsupportedFeature: the domain has no place for a member; names that member.
    """
    if (field := first_untranslatable_field(body)) is not None:
        raise UnsupportedFeature(f"this back end does not support {field}", field=field)
    system = tuple(
        text
        for message in body.messages
        if isinstance(message, wire.SystemMessage)
        for text in _texts(message.content)
    )
    return ChatRequest(
        model=body.model,
        system=system,
        messages=merge_turns(_parts_by_role(body.messages)),
        tools=tuple(_tool(tool) for tool in body.tools or ()),
        tool_choice=_choice(body),
        output=_output(body.response_format),
        reasoning=_reasoning(body.reasoning_effort),
        max_tokens=body.output_limit,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            seed=body.seed,
        ),
        user=body.user,
    )


def embedding_request_to_domain(body: wire.EmbeddingBody, model: str) -> EmbeddingRequest:
    """Translate a request for embeddings to the domain.

    Raises:
        UnsupportedFeature: the input is token numbers, which only the same model understands, or
            the domain has no place for a member.
    """
    texts = tuple(text for text in body.inputs if isinstance(text, str))
    if len(texts) != len(body.inputs):
        raise UnsupportedFeature(
            "input must be text: this back end does not accept token numbers", field="input"
        )
    for name, value in body.extras.items():
        if value:
            raise UnsupportedFeature(f"this back end does not support {name}", field=name)
    return EmbeddingRequest(model=model, inputs=texts, dimensions=body.dimensions, user=body.user)


def chat_needs(body: wire.ChatBody, data: Mapping[str, Any], raw: bytes) -> Needs:
    """Return the abilities and the context that a chat completion needs."""
    parts = list(content_parts(body))
    images, others = 0, []
    for part in parts:
        if isinstance(part, wire.OtherPart):
            others.append(part)
        elif not isinstance(part, wire.TextPart):
            images += 1
    tools = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    form = body.response_format
    schema = len(to_json(form.json_schema)) if form and form.json_schema else 0
    return Needs(
        prompt_tokens=sum(map(estimate_tokens, _prompt_texts(body, parts)))
        + estimate_delimiter_tokens(len(body.messages))
        + images * IMAGE_TOKENS
        + tools,
        max_tokens=body.max_output_tokens,
        tools=bool(body.tools),
        vision=images > 0,
        schema=form is not None and form.type == "json_schema",
        thinking=body.reasoning_effort not in (None, "none"),
        has_cache_markers=_CACHE_MARKER in raw,
        attachment_bytes=sum(map(_content_bytes, others)) + schema,
        has_external_content=any(map(_is_external, others))
        or (_AUDIO_MEMBER in raw and _refers_to_audio(body)),
    )


def embedding_needs(body: wire.EmbeddingBody) -> Needs:
    """Return the context that a request for embeddings needs."""
    sizes = [estimate_tokens(i) if isinstance(i, str) else len(i) for i in body.inputs]
    return Needs(prompt_tokens=sum(sizes), longest_input=max(sizes, default=0), embeddings=True)


def chat_constraints(body: wire.ChatBody, data: Mapping[str, Any]) -> ResponseConstraints:
    """Return the constraints that a chat completion sets for its response."""
    form = body.response_format
    if form is None and not body.tools and not body.n and "modalities" not in data:
        return UNCONSTRAINED
    schema = None if form is None else form.json_schema
    # This member is not validated here: the back end rejects a wrong one.
    modalities = data.get("modalities")
    has_audio = isinstance(modalities, list) and "audio" in modalities
    return ResponseConstraints(
        json=form is not None and form.type != "text",
        schema=None if schema is None else schema.schema_,
        tools=frozenset(tool.function.name for tool in body.tools or ()),
        plain=(body.n or 1) == 1 and not has_audio,
    )


def content_parts(body: wire.ChatBody) -> Iterator[wire.ContentPart]:
    """Yield the content parts of all messages."""
    for message in body.messages:
        if isinstance(message.content, list):
            yield from message.content


def message_text(message: wire.Message) -> str:
    """Return the text of a message, one line per part."""
    content = message.content
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part, wire.TextPart))


def _prompt_texts(body: wire.ChatBody, parts: Iterable[wire.ContentPart]) -> Iterator[str]:
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
        if isinstance(message, wire.AssistantMessage):
            for call in message.tool_calls or ():
                yield call.function.arguments
            # The blocks and the plain text beside them hold the same thinking.
            for block in message.thinking_blocks or ():
                yield block.thinking or block.data or ""
            if not message.thinking_blocks:
                yield message.reasoning_content or ""
    for part in parts:
        if isinstance(part, wire.TextPart):
            yield part.text


def _content_bytes(part: wire.OtherPart) -> int:
    """Return the bytes of a file or of audio without serialising it, because it may be large."""
    content = part.extras.get(part.type)
    if not isinstance(content, dict):
        return len(to_json(part))
    return sum(count_utf8_bytes(value) for value in content.values() if isinstance(value, str))


def _is_external(part: wire.OtherPart) -> bool:
    """Tell if the part is a file that is named by its id or its URL."""
    if part.type != "file":
        return False
    file = part.extras.get("file")
    if not isinstance(file, dict) or file.get("file_id"):
        return True
    data = file.get("file_data")
    return not isinstance(data, str) or data.startswith(("http:", "https:"))


def _refers_to_audio(body: wire.ChatBody) -> bool:
    """Tell if a message refers by id to an earlier audio answer."""
    return any(
        isinstance(message, wire.AssistantMessage) and message.extras.get("audio")
        for message in body.messages
    )


def _parts_by_role(messages: Sequence[wire.Message]) -> Iterator[tuple[Role, Iterator[Part]]]:
    for message in messages:
        if not isinstance(message, wire.SystemMessage):
            is_answer = isinstance(message, wire.AssistantMessage)
            yield Role.ASSISTANT if is_answer else Role.USER, _parts(message)


def _parts(message: wire.Message) -> Iterator[Part]:
    if isinstance(message, wire.ToolMessage):
        yield ToolResult(tool_use_id=message.tool_call_id, content=tuple(_texts(message.content)))
        return
    if isinstance(message, wire.AssistantMessage):
        yield from _thinking(message)
    content = message.content
    if isinstance(content, str):
        if content or isinstance(message, wire.UserMessage):
            yield Text(text=content)
    else:
        for part in content or ():
            yield _part(part)
    if isinstance(message, wire.AssistantMessage):
        for call in message.tool_calls or ():
            yield ToolUse(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _thinking(message: wire.AssistantMessage) -> Iterator[Thinking]:
    """Yield Claude's own blocks if the client kept them, because Claude accepts what it signed."""
    for block in message.thinking_blocks or ():
        if block.type == "redacted_thinking":
            yield Thinking(redacted=block.data)
        else:
            yield Thinking(text=block.thinking, signature=block.signature)
    if message.reasoning_content and not message.thinking_blocks:
        yield Thinking(text=message.reasoning_content)


def _part(part: wire.ContentPart) -> Part:
    if isinstance(part, wire.TextPart):
        return Text(text=part.text, cache=_cache(part))
    if isinstance(part, wire.ImagePart):
        return replace(_image(part.image_url.url), cache=_cache(part))
    return Text(text=str(part.extras.get("refusal", "")))


def _image(url: str) -> Image:
    if not url.startswith("data:"):
        return Image(url=url)
    head, _, data = url.partition(",")
    return Image(media_type=head[5:].partition(";")[0] or "image/png", data=data)


def _texts(content: str | list[wire.TextPart]) -> tuple[Text, ...]:
    if isinstance(content, str):
        return (Text(text=content),)
    return tuple(Text(text=part.text, cache=_cache(part)) for part in content)


def _cache(marked: wire.Cacheable) -> str | None:
    control = marked.cache_control
    return None if control is None else control.ttl or "5m"


def _tool(tool: wire.Tool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        # A tool without parameters takes none. A strict tool needs a closed schema.
        schema=function.parameters
        or {"type": "object", "properties": {}, "additionalProperties": False},
        strict=function.strict,
        cache=_cache(tool),
    )


def _choice(body: wire.ChatBody) -> ToolChoice | None:
    choice, parallel = body.tool_choice, body.parallel_tool_calls
    if not body.tools and choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice requires at least one tool in tools", field="tool_choice")
    if isinstance(choice, wire.NamedChoice):
        return ToolChoice(mode="tool", name=choice.function.name, parallel=parallel)
    if choice is None and parallel is None:
        return None
    return ToolChoice(mode=choice or "auto", parallel=parallel)


def _output(form: wire.ResponseFormat | None) -> OutputFormat | None:
    if form is None or form.type == "text":
        return None
    schema = form.json_schema
    if schema is None:
        return OutputFormat()
    return OutputFormat(
        name=schema.name,
        schema=schema.schema_,
        description=schema.description,
        strict=schema.strict,
    )


def _reasoning(effort: str | None) -> Reasoning | None:
    if effort is None:
        return None
    if effort == "none":
        return Reasoning(enabled=False)
    return Reasoning(effort=effort, budget=_BUDGETS.get(effort))
