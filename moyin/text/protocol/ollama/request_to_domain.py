"""Translates Ollama's requests to `moyin.domain.chat`, and derives their needs.

The needs are the abilities and the context length that a model must have to answer a request.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.artifact import UNKNOWN_MEDIA_TYPE, detect_media_type
from moyin.domain.needs import IMAGE_TOKENS, Needs, estimate_delimiter_tokens, estimate_tokens
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.text.protocol.codec import merge_adjacent_messages
from moyin.text.protocol.logprobs import read_requested_logprobs
from moyin.text.protocol.ollama import wire

# Members and options that change the answer and that only Ollama has. Others are ignored: unknown
# members, because Ollama ignores them, too, and options that only set how Ollama runs the model.
_NATIVE_MEMBERS = frozenset({"context", "raw", "suffix", "template"})
_NATIVE_OPTIONS = frozenset(
    {
        "mirostat", "mirostat_eta", "mirostat_tau", "penalize_newline", "repeat_last_n", "tfs_z",
        "typical_p",
    }
)  # fmt: skip
_THINKING_BUDGETS = {"low": 2048, "medium": 8192, "high": 24576}
# The base64 characters at the start of a picture that suffice to detect its media type.
_MEDIA_TYPE_SAMPLE_CHARACTERS = 32


def chat_request_to_domain(body: wire.ChatBody, model: str) -> chat.ChatRequest:
    """Translate a request of ``/api/chat`` to a `ChatRequest`.

    Raises:
        UnsupportedFeature: `ChatRequest` cannot express a member; the error names it.
        InvalidRequest: a tool message answers no tool call, or a picture is not base64.
    """
    _refuse_native_members(body)
    messages = body.messages or []
    system = tuple(chat.Text(text=m.text) for m in messages if m.role == "system")
    tools = tuple(_convert_tool(tool) for tool in body.tools or ())
    return _build_chat_request(
        body,
        model,
        system=system,
        messages=merge_adjacent_messages(_iterate_parts_by_role(messages)),
        tools=tools,
    )


def generate_request_to_domain(body: wire.GenerateBody, model: str) -> chat.ChatRequest:
    """Translate a request of ``/api/generate`` to a `ChatRequest` with a single message.

    Raises:
        UnsupportedFeature: `ChatRequest` cannot express a member; the error names it.
        InvalidRequest: a picture is not base64.
    """
    _refuse_native_members(body)
    system = (chat.Text(text=body.system),) if body.system else ()
    parts: list[chat.Part] = [chat.Text(text=body.prompt or "")]
    parts += [
        _convert_image(data, f"images.{index}") for index, data in enumerate(body.images or ())
    ]
    message = chat.Message(role=chat.Role.USER, parts=tuple(parts))
    return _build_chat_request(body, model, system=system, messages=(message,), tools=())


def embedding_request_to_domain(body: wire.EmbedBody, model: str) -> chat.EmbeddingRequest:
    """Translate a request of ``/api/embed``, without its options, which do not change vectors."""
    return chat.EmbeddingRequest(model=model, inputs=body.inputs, dimensions=body.dimensions)


def derive_chat_needs(body: wire.ChatBody, data: Mapping[str, Any]) -> Needs:
    """Return the abilities and the context length that a model needs for a chat request."""
    messages = body.messages or []
    image_count = sum(len(message.images or ()) for message in messages)
    tool_tokens = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    text_tokens = sum(map(estimate_tokens, _iterate_prompt_texts(body)))
    prompt_tokens = text_tokens + estimate_delimiter_tokens(len(messages)) + tool_tokens
    return _build_needs(body, prompt_tokens, image_count=image_count, has_tools=bool(body.tools))


def derive_generate_needs(body: wire.GenerateBody) -> Needs:
    """Return the abilities and the context length that a model needs for ``/api/generate``."""
    text_tokens = estimate_tokens(body.prompt or "") + estimate_tokens(body.system or "")
    return _build_needs(
        body,
        text_tokens + estimate_delimiter_tokens(1),
        image_count=len(body.images or ()),
        has_tools=False,
    )


def derive_embedding_needs(body: wire.EmbedBody | wire.EmbeddingsBody) -> Needs:
    """Return the context length that a model needs for a request for embeddings."""
    token_counts = [estimate_tokens(text) for text in body.inputs]
    return Needs(
        prompt_tokens=sum(token_counts), longest_input=max(token_counts, default=0), embeddings=True
    )


def _build_needs(
    body: wire.GenerationBody, text_tokens: int, *, image_count: int, has_tools: bool
) -> Needs:
    return Needs(
        prompt_tokens=text_tokens + image_count * IMAGE_TOKENS,
        attachment_bytes=0 if body.schema_ is None else len(to_json(body.schema_)),
        max_tokens=body.output_limit,
        tools=has_tools,
        vision=image_count > 0,
        schema=body.schema_ is not None,
        thinking=bool(body.think),
    )


def _iterate_prompt_texts(body: wire.ChatBody) -> Iterator[str]:
    for message in body.messages or ():
        yield message.text
        yield message.thinking or ""
        for call in message.tool_calls or ():
            yield to_json(call.function.arguments).decode()


def _build_chat_request(
    body: wire.GenerationBody,
    model: str,
    *,
    system: tuple[chat.Text, ...],
    messages: tuple[chat.Message, ...],
    tools: tuple[chat.Tool, ...],
) -> chat.ChatRequest:
    options = body.options or wire.Options()
    stop = options.stop
    return chat.ChatRequest(
        model=model,
        system=system,
        messages=messages,
        tools=tools,
        output=chat.OutputFormat(schema=body.schema_) if body.format else None,
        reasoning=_convert_think(body.think),
        max_tokens=body.output_limit,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        sampling=chat.Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            # Many clients always send repeat_penalty 1 and min_p 0, which have no effect.
            repeat_penalty=None if options.repeat_penalty == 1 else options.repeat_penalty,
            min_p=options.min_p or None,
            seed=options.seed,
        ),
        logprobs=read_requested_logprobs(body.logprobs, body.top_logprobs),
    )


def _refuse_native_members(body: wire.GenerationBody) -> None:
    _refuse_members(body.extras, _NATIVE_MEMBERS, "")
    if body.options is not None:
        _refuse_members(body.options.extras, _NATIVE_OPTIONS, "options.")


def _refuse_members(members: Mapping[str, Any], native_names: frozenset[str], prefix: str) -> None:
    for name, value in members.items():
        if value and name in native_names:
            field = f"{prefix}{name}"
            raise UnsupportedFeature(
                f"{field} requires a model on an Ollama server: omit it or choose such a model",
                field=field,
            )


def _iterate_parts_by_role(
    messages: Sequence[wire.Message],
) -> Iterator[tuple[chat.Role, Iterator[chat.Part]]]:
    pending_calls = _PendingToolCalls()
    for message_index, message in enumerate(messages):
        if message.role != "system":
            role = chat.Role.ASSISTANT if message.role == "assistant" else chat.Role.USER
            yield role, _convert_message(message, message_index, pending_calls)


class _PendingToolCalls:
    """Matches tool results to tool calls, because Ollama's clients may omit the id of the call."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, str]] = []  # id and name of the tool
        self._count = 0

    def add(self, call: wire.ToolCall) -> str:
        self._count += 1
        call_id = call.id or f"call_{self._count}"
        self._pending.append((call_id, call.function.name))
        return call_id

    def resolve_call_id(self, message: wire.Message, message_index: int) -> str:
        """Remove the pending call that the tool result ``message`` answers, and return its id.

        Args:
            message_index: the index of the message in the request, for the error.

        Raises:
            InvalidRequest: no pending call matches the result.
        """
        if message.tool_call_id:
            self._pending = [call for call in self._pending if call[0] != message.tool_call_id]
            return message.tool_call_id
        name = message.tool_name or message.extras.get("name")
        for index, (call_id, tool_name) in enumerate(self._pending):
            if name in (None, tool_name):
                del self._pending[index]
                return call_id
        raise InvalidRequest(
            f"messages.{message_index} must name an earlier tool call by tool_call_id or tool_name",
            field=f"messages.{message_index}",
        )


def _convert_message(
    message: wire.Message, message_index: int, pending_calls: _PendingToolCalls
) -> Iterator[chat.Part]:
    images = [
        _convert_image(data, f"messages.{message_index}.images.{image_index}")
        for image_index, data in enumerate(message.images or ())
    ]
    if message.role == "tool":
        content: list[chat.Text | chat.Image] = [chat.Text(text=message.text), *images]
        yield chat.ToolResult(
            tool_use_id=pending_calls.resolve_call_id(message, message_index),
            content=tuple(content),
        )
        return
    if message.thinking:
        yield chat.Thinking(text=message.thinking)
    if message.text or (message.role == "user" and not images):
        yield chat.Text(text=message.text)
    yield from images
    for call in message.tool_calls or ():
        arguments = to_json(call.function.arguments).decode()
        yield chat.ToolUse(id=pending_calls.add(call), name=call.function.name, arguments=arguments)


def _convert_image(data: str, field: str) -> chat.Image:
    try:
        first_bytes = base64.b64decode(data[:_MEDIA_TYPE_SAMPLE_CHARACTERS], validate=True)
    except ValueError:
        # `binascii.Error` is one; text that is not ASCII raises another.
        raise InvalidRequest(f"{field} must be base64", field=field) from None
    media_type = detect_media_type(None, first_bytes)
    return chat.Image(
        media_type="image/png" if media_type == UNKNOWN_MEDIA_TYPE else media_type, data=data
    )


def _convert_tool(tool: wire.Tool) -> chat.Tool:
    function = tool.function
    return chat.Tool(
        name=function.name,
        description=function.description,
        schema=function.parameters or {"type": "object", "properties": {}},
    )


def _convert_think(think: bool | str | None) -> chat.Reasoning | None:
    if think is None:
        return None
    if isinstance(think, bool):
        return chat.Reasoning(enabled=think)
    return chat.Reasoning(effort=think, budget=_THINKING_BUDGETS.get(think))
