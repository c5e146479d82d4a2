"""Translates OpenAI's requests to `moyin.domain.chat`, and derives their needs.

The needs are the abilities and the context length that a model must have to answer a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from moyin.domain import chat
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
from moyin.text.protocol.codec import merge_adjacent_messages
from moyin.text.protocol.documents import read_encoded_file
from moyin.text.protocol.logprobs import read_requested_logprobs
from moyin.text.protocol.openai import wire

# A body without these bytes does not have the member. Searching bytes is faster than walking the
# JSON, and a text can't contain them, because quotes in a JSON string are escaped.
_CACHE_MARKER = b'"cache_control"'
_AUDIO_MARKER = b'"audio"'

# Members that translation drops, because they are hints or do not change the answer.
DROPPED_MEMBERS = frozenset(
    {
        "annotations", "detail", "index", "metadata", "name", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "provider_specific_fields", "reasoning",
        "refusal", "safety_identifier", "service_tier", "store",
    }
)  # fmt: skip
_THINKING_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}


def find_untranslatable_field(body: wire.ChatBody) -> str | None:
    """Return the path of the first member that a `ChatRequest` cannot express, or None."""
    if body.n is not None and body.n > 1:
        return "n"
    for number, message in enumerate(body.messages):
        content = message.content
        if isinstance(content, list):
            for part_number, part in enumerate(content):
                if not _is_translatable(part):
                    return f"messages.{number}.content.{part_number}"
    # Medium verbosity is the default of every model.
    has_default_verbosity = body.extras.get("verbosity") == "medium"
    return find_unsupported_field(
        body, DROPPED_MEMBERS | {"verbosity"} if has_default_verbosity else DROPPED_MEMBERS
    )


def chat_request_to_domain(body: wire.ChatBody) -> chat.ChatRequest:
    """Translate a chat completion request to a `ChatRequest`.

    Raises:
        UnsupportedFeature: `ChatRequest` cannot express a member; the error names it.
        InvalidRequest: ``tool_choice`` requires a tool, but the request has none; or
            ``top_logprobs`` is too large or set without ``logprobs``.
    """
    if (field := find_untranslatable_field(body)) is not None:
        raise new_unsupported_error(field)
    system = tuple(
        text
        for message in body.messages
        if isinstance(message, wire.SystemMessage)
        for text in _convert_texts(message.content)
    )
    return chat.ChatRequest(
        model=body.model,
        system=system,
        messages=merge_adjacent_messages(_iterate_parts_by_role(body.messages)),
        tools=tuple(_convert_tool(tool) for tool in body.tools or ()),
        tool_choice=_convert_tool_choice(body),
        output=_convert_response_format(body.response_format),
        reasoning=_convert_reasoning_effort(body.reasoning_effort),
        max_tokens=body.output_limit,
        stop=convert_stop(body),
        sampling=convert_sampling(body),
        logprobs=read_requested_logprobs(body.logprobs, body.top_logprobs),
        user=body.user,
    )


def convert_stop(body: wire.GenerationBody) -> tuple[str, ...]:
    """Return the stop sequences of a request."""
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def convert_sampling(body: wire.GenerationBody) -> chat.Sampling:
    """Return the sampling options of a request."""
    return chat.Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
    )


def new_unsupported_error(field: str) -> UnsupportedFeature:
    """Return the error for a member that only back ends with OpenAI's API support."""
    return UnsupportedFeature(
        f"{field} requires a back end with OpenAI's API: omit it or choose another model",
        field=field,
    )


def embedding_request_to_domain(body: wire.EmbeddingBody, model: str) -> chat.EmbeddingRequest:
    """Translate a request for embeddings to an `EmbeddingRequest`.

    Raises:
        UnsupportedFeature: the input is token ids, which only the model itself can decode, or
            `EmbeddingRequest` cannot express a member; the error names it.
    """
    texts = tuple(text for text in body.inputs if isinstance(text, str))
    if len(texts) != len(body.inputs):
        raise UnsupportedFeature(
            "input: token ids require a back end with OpenAI's API: send text", field="input"
        )
    for name, value in body.extras.items():
        if value:
            raise new_unsupported_error(name)
    return chat.EmbeddingRequest(
        model=model, inputs=texts, dimensions=body.dimensions, user=body.user
    )


def derive_chat_needs(body: wire.ChatBody, data: Mapping[str, Any], raw: bytes) -> Needs:
    """Return the abilities and the context length that a model needs for a chat completion."""
    parts = list(iterate_content_parts(body))
    image_count, other_parts = 0, []
    for part in parts:
        if isinstance(part, wire.OtherPart | wire.FilePart):
            other_parts.append(part)
        elif not isinstance(part, wire.TextPart):
            image_count += 1
    tool_tokens = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    response_format = body.response_format
    schema_bytes = (
        len(to_json(response_format.json_schema))
        if response_format and response_format.json_schema
        else 0
    )
    return Needs(
        prompt_tokens=sum(map(estimate_tokens, _iterate_prompt_texts(body, parts)))
        + estimate_delimiter_tokens(len(body.messages))
        + image_count * IMAGE_TOKENS
        + tool_tokens,
        max_tokens=body.max_output_tokens,
        choices=body.n or 1,
        tools=bool(body.tools),
        vision=image_count > 0,
        schema=response_format is not None and response_format.type == "json_schema",
        thinking=body.reasoning_effort not in (None, "none"),
        has_cache_markers=_CACHE_MARKER in raw,
        attachment_bytes=sum(map(_count_content_bytes, other_parts)) + schema_bytes,
        has_files=any(isinstance(part, wire.FilePart) for part in other_parts),
        has_external_content=any(map(_is_external_file, other_parts))
        or (_AUDIO_MARKER in raw and _refers_to_audio(body)),
    )


def derive_embedding_needs(body: wire.EmbeddingBody) -> Needs:
    """Return the context length that a model needs for a request for embeddings."""
    token_counts = [estimate_tokens(i) if isinstance(i, str) else len(i) for i in body.inputs]
    return Needs(
        prompt_tokens=sum(token_counts), longest_input=max(token_counts, default=0), embeddings=True
    )


def derive_chat_constraints(body: wire.ChatBody, data: Mapping[str, Any]) -> ResponseConstraints:
    """Return the constraints, such as a JSON schema, that a chat completion sets for its answer."""
    response_format = body.response_format
    if response_format is None and not body.tools and not body.n and "modalities" not in data:
        return UNCONSTRAINED
    schema = None if response_format is None else response_format.json_schema
    # The back end, not `wire.ChatBody`, validates this member.
    modalities = data.get("modalities")
    has_audio = isinstance(modalities, list) and "audio" in modalities
    return ResponseConstraints(
        json=response_format is not None and response_format.type != "text",
        schema=None if schema is None else schema.schema_,
        tools=frozenset(tool.function.name for tool in body.tools or ()),
        plain=(body.n or 1) == 1 and not has_audio,
    )


def iterate_content_parts(body: wire.ChatBody) -> Iterator[wire.ContentPart]:
    """Yield the content parts of all messages."""
    for message in body.messages:
        if isinstance(message.content, list):
            yield from message.content


def join_text_parts(message: wire.Message) -> str:
    """Return the text parts of a message, each on its own line."""
    content = message.content
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part, wire.TextPart))


def _iterate_prompt_texts(body: wire.ChatBody, parts: Iterable[wire.ContentPart]) -> Iterator[str]:
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
        if isinstance(message, wire.AssistantMessage):
            for call in message.tool_calls or ():
                yield call.function.arguments
            # `reasoning_content` repeats the thinking of the blocks as plain text.
            for block in message.thinking_blocks or ():
                yield block.thinking or block.data or ""
            if not message.thinking_blocks:
                yield message.reasoning_content or ""
    for part in parts:
        if isinstance(part, wire.TextPart):
            yield part.text


def _is_translatable(part: wire.ContentPart) -> bool:
    """Return True if other protocols can express the part.

    They cannot express audio, or a file that the part gives only by id or URL.
    """
    if isinstance(part, wire.FilePart):
        return part.file_data is not None and not part.file.get("file_id")
    return not isinstance(part, wire.OtherPart) or part.type == "refusal"


def _count_content_bytes(part: wire.OtherPart | wire.FilePart) -> int:
    """Return the size in bytes of a file or of audio.

    Nothing is serialized for this, because the content may be large.
    """
    content = part.file if isinstance(part, wire.FilePart) else part.extras.get(part.type)
    if not isinstance(content, dict):
        return len(to_json(part))
    return sum(count_utf8_bytes(value) for value in content.values() if isinstance(value, str))


def _is_external_file(part: wire.OtherPart | wire.FilePart) -> bool:
    """Return True if the part refers to a file by its id or URL instead of containing it."""
    return isinstance(part, wire.FilePart) and not _is_translatable(part)


def _refers_to_audio(body: wire.ChatBody) -> bool:
    """Return True if a message refers to an earlier audio answer by its id."""
    return any(
        isinstance(message, wire.AssistantMessage) and message.extras.get("audio")
        for message in body.messages
    )


def _iterate_parts_by_role(
    messages: Sequence[wire.Message],
) -> Iterator[tuple[chat.Role, Iterator[chat.Part]]]:
    for message in messages:
        if not isinstance(message, wire.SystemMessage):
            is_answer = isinstance(message, wire.AssistantMessage)
            yield chat.Role.ASSISTANT if is_answer else chat.Role.USER, _convert_message(message)


def _convert_message(message: wire.Message) -> Iterator[chat.Part]:
    if isinstance(message, wire.ToolMessage):
        yield chat.ToolResult(
            tool_use_id=message.tool_call_id, content=tuple(_convert_texts(message.content))
        )
        return
    if isinstance(message, wire.AssistantMessage):
        yield from _convert_thinking(message)
    content = message.content
    if isinstance(content, str):
        if content or isinstance(message, wire.UserMessage):
            yield chat.Text(text=content)
    else:
        for part in content or ():
            yield _convert_part(part)
    if isinstance(message, wire.AssistantMessage):
        for call in message.tool_calls or ():
            yield chat.ToolUse(
                id=call.id, name=call.function.name, arguments=call.function.arguments
            )


def _convert_thinking(message: wire.AssistantMessage) -> Iterator[chat.Thinking]:
    """Yield the thinking in a message of the model.

    If the message has the blocks that Claude signed, only they are used, because Claude accepts
    no other thinking.
    """
    for block in message.thinking_blocks or ():
        if block.type == "redacted_thinking":
            yield chat.Thinking(redacted=block.data)
        else:
            yield chat.Thinking(text=block.thinking, signature=block.signature)
    if message.reasoning_content and not message.thinking_blocks:
        yield chat.Thinking(text=message.reasoning_content)


def _convert_part(part: wire.ContentPart) -> chat.Part:
    if isinstance(part, wire.TextPart):
        return chat.Text(text=part.text, cache=_read_cache_ttl(part))
    if isinstance(part, wire.ImagePart):
        return replace(_convert_image_url(part.image_url.url), cache=_read_cache_ttl(part))
    if isinstance(part, wire.FilePart):
        file = read_encoded_file(part.file_data or "", name=part.filename, field="messages")
        return replace(file, cache=_read_cache_ttl(part))
    return chat.Text(text=str(part.extras.get("refusal", "")))


def _convert_image_url(url: str) -> chat.Image:
    if not url.startswith("data:"):
        return chat.Image(url=url)
    header, _, data = url.partition(",")
    return chat.Image(media_type=header[5:].partition(";")[0] or "image/png", data=data)


def _convert_texts(content: str | list[wire.TextPart]) -> tuple[chat.Text, ...]:
    if isinstance(content, str):
        return (chat.Text(text=content),)
    return tuple(chat.Text(text=part.text, cache=_read_cache_ttl(part)) for part in content)


def _read_cache_ttl(part: wire.Cacheable) -> str | None:
    control = part.cache_control
    return None if control is None else control.ttl or "5m"


def _convert_tool(tool: wire.Tool) -> chat.Tool:
    function = tool.function
    return chat.Tool(
        name=function.name,
        description=function.description,
        # A tool whose parameters are omitted has none. The schema is closed for strict tools.
        schema=function.parameters
        or {"type": "object", "properties": {}, "additionalProperties": False},
        strict=function.strict,
        cache=_read_cache_ttl(tool),
    )


def _convert_tool_choice(body: wire.ChatBody) -> chat.ToolChoice | None:
    tool_choice, allows_parallel_calls = body.tool_choice, body.parallel_tool_calls
    if not body.tools and tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice requires at least one tool in tools", field="tool_choice")
    if isinstance(tool_choice, wire.NamedChoice):
        return chat.ToolChoice(
            mode="tool", name=tool_choice.function.name, parallel=allows_parallel_calls
        )
    if tool_choice is None and allows_parallel_calls is None:
        return None
    return chat.ToolChoice(mode=tool_choice or "auto", parallel=allows_parallel_calls)


def _convert_response_format(
    response_format: wire.ResponseFormat | None,
) -> chat.OutputFormat | None:
    if response_format is None or response_format.type == "text":
        return None
    schema = response_format.json_schema
    if schema is None:
        return chat.OutputFormat()
    return chat.OutputFormat(
        name=schema.name,
        schema=schema.schema_,
        description=schema.description,
        strict=schema.strict,
    )


def _convert_reasoning_effort(effort: str | None) -> chat.Reasoning | None:
    if effort is None:
        return None
    if effort == "none":
        return chat.Reasoning(enabled=False)
    return chat.Reasoning(effort=effort, budget=_THINKING_BUDGETS.get(effort))
