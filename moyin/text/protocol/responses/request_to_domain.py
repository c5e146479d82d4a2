"""Translates requests of the Responses API to `moyin.domain.chat`, and derives their needs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.chat import (
    ChatRequest,
    Document,
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
from moyin.domain.needs import IMAGE_TOKENS, Needs, estimate_delimiter_tokens, estimate_tokens
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import find_unsupported_field, require_text
from moyin.text.protocol.codec import Turn, merge_adjacent_messages
from moyin.text.protocol.documents import NO_FILES, PromptFile, read_encoded_file
from moyin.text.protocol.logprobs import read_requested_logprobs
from moyin.text.protocol.responses import wire
from moyin.text.protocol.responses.tools import join_name, list_tools

# Members that translation drops, because they are hints or do not change the answer. `id` and
# `status` belong to items that the client sends back.
_DROPPED_MEMBERS = frozenset(
    {
        "annotations", "client_metadata", "detail", "generate_summary", "id", "include_obfuscation", "logprobs",
        "max_tool_calls", "metadata", "phase", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier", "status",
    }
)  # fmt: skip
_INCLUDABLE = frozenset({wire.PROOF_OF_REASONING, wire.LOGPROBS_OF_TEXT})
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}
# A custom tool is sent as a function with only this argument.
_CUSTOM_ARGUMENT = "input"
_CUSTOM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {_CUSTOM_ARGUMENT: {"type": "string"}},
    "required": [_CUSTOM_ARGUMENT],
    "additionalProperties": False,
}


def chat_request_to_domain(
    body: wire.ResponseBody, files: Mapping[str, PromptFile] = NO_FILES
) -> ChatRequest:
    """Translate a Responses request to a `ChatRequest`.

    Args:
        files: the files that the request references, by id.

    Raises:
        InvalidRequest: members contradict each other; the error names one.
        UnsupportedFeature: `ChatRequest` cannot express a member; the error names it.
    """
    if (field := _find_untranslatable_field(body)) is not None:
        raise UnsupportedFeature(
            f"{field} is not supported by the chosen back end: omit it or choose another model",
            field=field,
        )
    items = _list_items(body)
    text_format = body.text.format if body.text is not None else None
    return ChatRequest(
        model=body.model,
        system=tuple(_convert_system(body, items, files)),
        messages=merge_adjacent_messages(_iterate_parts_by_role(items, files)),
        tools=tuple(_convert_tools(body)),
        tool_choice=_convert_tool_choice(body),
        output=_convert_output_format(text_format),
        reasoning=_convert_reasoning(body.reasoning),
        max_tokens=body.max_output_tokens,
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p),
        logprobs=_convert_logprobs(body),
        user=body.user,
    )


def derive_chat_needs(request: ChatRequest) -> Needs:
    """Return the abilities and the context length that a model needs for a request."""
    parts = [part for message in request.messages for part in message.parts]
    image_count = sum(isinstance(part, Image) for part in _flatten_tool_results(parts))
    tool_tokens = sum(
        estimate_tokens(f"{tool.name} {tool.description or ''}")
        + estimate_tokens(to_json(dict(tool.schema)).decode())
        for tool in request.tools
    )
    document_bytes = sum(
        len(part.data) for part in _flatten_tool_results(parts) if isinstance(part, Document)
    )
    output_format = request.output
    schema = None if output_format is None else output_format.schema
    texts = [part.text for part in request.system]
    texts += [_read_part_text(part) for part in _flatten_tool_results(parts)]
    return Needs(
        prompt_tokens=sum(map(estimate_tokens, texts))
        + estimate_delimiter_tokens(len(request.messages) + bool(request.system))
        + image_count * IMAGE_TOKENS
        + tool_tokens,
        max_tokens=request.max_tokens,
        tools=bool(request.tools),
        vision=image_count > 0,
        schema=schema is not None,
        thinking=request.reasoning is not None and request.reasoning.enabled,
        attachment_bytes=document_bytes + (0 if schema is None else len(to_json(dict(schema)))),
    )


def iterate_turns_newest_first(request: ChatRequest) -> Iterator[Turn]:
    """Yield the role and the text of each message, newest first, then the system prompt."""
    for message in reversed(request.messages):
        tool_results = [part for part in message.parts if isinstance(part, ToolResult)]
        texts = [part.text for part in message.parts if isinstance(part, Text)]
        yield message.role.value, "\n".join(texts)
        if tool_results:
            # A tool's result is not the user's own text.
            yield "tool", "\n".join(map(_read_part_text, _flatten_tool_results(tool_results)))
    yield "system", "\n".join(part.text for part in request.system)


def decode_custom_tool_input(arguments: str) -> str:
    """Return the free text in the arguments with which a model called a custom tool.

    If the arguments do not have the expected format, they are returned unchanged.
    """
    try:
        parsed_arguments = from_json(arguments)
        text = parsed_arguments[_CUSTOM_ARGUMENT]
    except (ValueError, KeyError, TypeError):
        return arguments
    return text if isinstance(text, str) else arguments


def encode_custom_tool_arguments(text: str) -> str:
    """Encode free text as the arguments of a call to a custom tool."""
    return to_json({_CUSTOM_ARGUMENT: text}).decode()


def encode_reasoning_proof(part: Thinking) -> str | None:
    """Encode the provider's proof of reasoning as ``encrypted_content``; None if there is none.

    The result is encoded, not encrypted: the provider has signed or encrypted the proof already.
    """
    if part.signature is None and part.redacted is None:
        return None
    proof = {"text": part.text, "signature": part.signature, "redacted": part.redacted}
    return base64.urlsafe_b64encode(to_json(proof)).decode()


def image_from_url(url: str) -> Image:
    """Return the image that an HTTP URL references or a ``data:`` URL contains."""
    if not url.startswith("data:"):
        return Image(url=url)
    header, _, data = url.partition(",")
    return Image(media_type=header[5:].partition(";")[0] or "image/png", data=data)


def _find_untranslatable_field(body: wire.ResponseBody) -> str | None:
    for number, name in enumerate(body.include or ()):
        if name not in _INCLUDABLE:
            return f"include.{number}"
    if body.truncation == "auto":
        return "truncation"
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        # Medium verbosity is the default of every model.
        return "text.verbosity"
    return find_unsupported_field(body, _DROPPED_MEMBERS)


def _convert_logprobs(body: wire.ResponseBody) -> int | None:
    includes_logprobs = wire.LOGPROBS_OF_TEXT in (body.include or ())
    return read_requested_logprobs(includes_logprobs or bool(body.top_logprobs), body.top_logprobs)


def _list_items(body: wire.ResponseBody) -> list[Any]:
    if isinstance(body.input, str):
        return [wire.Message(type="message", role="user", content=body.input)]
    return body.input


def _convert_system(
    body: wire.ResponseBody, items: list[Any], files: Mapping[str, PromptFile]
) -> Iterator[Text]:
    if body.instructions:
        yield Text(text=body.instructions)
    for number, item in enumerate(items):
        if isinstance(item, wire.Message) and item.role in ("system", "developer"):
            for part in _convert_content(item.content, f"input.{number}.content", files):
                if not isinstance(part, Text):
                    raise InvalidRequest(
                        f"input.{number}.content: a {item.role} message can only contain text",
                        field=f"input.{number}.content",
                    )
                yield part


def _iterate_parts_by_role(
    items: list[Any], files: Mapping[str, PromptFile]
) -> Iterator[tuple[Role, Iterator[Part]]]:
    for number, item in enumerate(items):
        match item:
            case wire.Message(role="user"):
                yield Role.USER, _convert_content(item.content, f"input.{number}.content", files)
            case wire.Message(role="assistant"):
                yield (
                    Role.ASSISTANT,
                    _convert_content(item.content, f"input.{number}.content", files),
                )
            case wire.FunctionCall():
                name = join_name(item.namespace, item.name)
                tool_use = ToolUse(id=item.call_id, name=name, arguments=item.arguments)
                yield Role.ASSISTANT, iter((tool_use,))
            case wire.CustomToolCall():
                arguments = encode_custom_tool_arguments(item.input)
                name = join_name(item.namespace, item.name)
                tool_use = ToolUse(id=item.call_id, name=name, arguments=arguments)
                yield Role.ASSISTANT, iter((tool_use,))
            case wire.ToolOutput():
                yield Role.USER, iter((_convert_tool_result(item, number, files),))
            case wire.ReasoningItem():
                yield Role.ASSISTANT, iter((_convert_reasoning_item(item, number),))


def _convert_content(
    content: str | list[Any], field: str, files: Mapping[str, PromptFile]
) -> Iterator[PromptFile]:
    if isinstance(content, str):
        yield Text(text=content)
        return
    for part_number, part in enumerate(content):
        match part:
            case wire.InputText() | wire.OutputText():
                yield Text(text=part.text)
            case wire.Refusal():
                yield Text(text=part.refusal)
            case wire.InputImage(image_url=str(url)):
                yield image_from_url(url)
            case wire.InputImage(file_id=str(file_id)):
                picture = _find_file(file_id, f"{field}.{part_number}.file_id", files)
                if not isinstance(picture, Image):
                    raise InvalidRequest(
                        f"{field}.{part_number}.file_id must be a PNG, JPEG, GIF or WebP: send others "
                        "as input_file",
                        field=f"{field}.{part_number}.file_id",
                    )
                yield picture
            case wire.InputImage():
                raise InvalidRequest(
                    f"{field}.{part_number} must have image_url or file_id",
                    field=f"{field}.{part_number}",
                )
            case wire.InputFile():
                yield _convert_file(part, f"{field}.{part_number}", files)


def _convert_file(part: wire.InputFile, field: str, files: Mapping[str, PromptFile]) -> PromptFile:
    if part.file_id is not None:
        return _find_file(part.file_id, f"{field}.file_id", files)
    if part.file_data is not None:
        return read_encoded_file(part.file_data, name=part.filename, field=f"{field}.file_data")
    if part.file_url is not None:
        raise UnsupportedFeature(
            f"{field}.file_url: files by URL are not supported: send file_data, or upload the file "
            "to /v1/files and send its file_id",
            field=f"{field}.file_url",
        )
    raise InvalidRequest(f"{field} must have file_id or file_data", field=field)


def _find_file(file_id: str, field: str, files: Mapping[str, PromptFile]) -> PromptFile:
    if file_id not in files:
        raise InvalidRequest(
            f"{field}: there is no file {file_id[:80]!r}: upload it to /v1/files first", field=field
        )
    return files[file_id]


def _convert_tool_result(
    item: wire.ToolOutput, number: int, files: Mapping[str, PromptFile]
) -> ToolResult:
    content = tuple(_convert_content(item.output, f"input.{number}.output", files))
    return ToolResult(tool_use_id=item.call_id, content=content)


def _convert_reasoning_item(item: wire.ReasoningItem, number: int) -> Thinking:
    if item.encrypted_content is not None:
        try:
            proof = from_json(base64.urlsafe_b64decode(item.encrypted_content))
            return Thinking(
                text=require_text(proof["text"]),
                signature=_require_optional_text(proof["signature"]),
                redacted=_require_optional_text(proof["redacted"]),
            )
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise InvalidRequest(
                f"input.{number}.encrypted_content must be copied from an answer of this server",
                field=f"input.{number}.encrypted_content",
            ) from None
    texts = item.content or item.summary
    return Thinking(text="\n\n".join(part.text for part in texts))


def _require_optional_text(value: Any) -> str | None:
    return None if value is None else require_text(value)


def _flatten_tool_results(parts: list[Any]) -> Iterator[Part]:
    for part in parts:
        yield part
        if isinstance(part, ToolResult):
            yield from part.content


def _read_part_text(part: Part) -> str:
    match part:
        case Text():
            return part.text
        case ToolUse():
            return part.arguments
        case Thinking():
            return part.text or part.redacted or ""
        case _:
            return ""


def _convert_tools(body: wire.ResponseBody) -> Iterator[Tool]:
    tool_choice = body.tool_choice
    allowed_names = (
        {tool.name for tool in tool_choice.tools}
        if isinstance(tool_choice, wire.AllowedTools)
        else None
    )
    for name, offered_tool in list_tools(body).items():
        if allowed_names is None or name in allowed_names:
            yield _convert_tool(name, offered_tool.tool)


def _convert_tool(name: str, tool: wire.FunctionTool | wire.CustomTool) -> Tool:
    if isinstance(tool, wire.CustomTool):
        return Tool(name=name, description=tool.description, schema=_CUSTOM_SCHEMA)
    return Tool(
        name=name,
        description=tool.description,
        # A tool whose parameters are omitted has none. The schema is closed for strict tools.
        schema=tool.parameters
        or {"type": "object", "properties": {}, "additionalProperties": False},
        strict=tool.strict,
    )


def _convert_tool_choice(body: wire.ResponseBody) -> ToolChoice | None:
    tool_choice, allows_parallel_calls = body.tool_choice, body.parallel_tool_calls
    tool_names = list_tools(body).keys()
    if not tool_names:
        if tool_choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "tool_choice requires at least one tool in tools", field="tool_choice"
            )
        return None
    chosen_tools = [tool_choice] if isinstance(tool_choice, wire.NamedTool) else []
    chosen_tools = tool_choice.tools if isinstance(tool_choice, wire.AllowedTools) else chosen_tools
    for tool in chosen_tools:
        if tool.name not in tool_names:
            raise InvalidRequest(
                f"tool_choice names {tool.name!r}, which is not in tools: add it to tools",
                field="tool_choice",
            )
    if isinstance(tool_choice, wire.NamedTool):
        return ToolChoice(mode="tool", name=tool_choice.name, parallel=allows_parallel_calls)
    if isinstance(tool_choice, wire.AllowedTools):
        return ToolChoice(mode=tool_choice.mode, parallel=allows_parallel_calls)
    if tool_choice is None and allows_parallel_calls is None:
        return None
    return ToolChoice(mode=tool_choice or "auto", parallel=allows_parallel_calls)


def _convert_output_format(text_format: wire.TextFormat | None) -> OutputFormat | None:
    if text_format is None or text_format.type == "text":
        return None
    return OutputFormat(
        name=text_format.name,
        schema=text_format.schema_,
        description=text_format.description,
        strict=text_format.strict,
    )


def _convert_reasoning(reasoning_config: wire.ReasoningConfig | None) -> Reasoning | None:
    effort = None if reasoning_config is None else reasoning_config.effort
    if effort is None:
        return None
    if effort == "none":
        return Reasoning(enabled=False)
    return Reasoning(effort=effort, budget=_BUDGETS.get(effort))
