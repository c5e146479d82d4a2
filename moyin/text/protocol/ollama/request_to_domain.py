"""Translates Ollama's requests to the domain, and derives what a model needs to answer them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from moyin.domain.artifact import UNKNOWN_MEDIA_TYPE, detect_media_type
from moyin.domain.chat import (
    ChatRequest,
    EmbeddingRequest,
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
    ToolResult,
    ToolUse,
)
from moyin.domain.needs import IMAGE_TOKENS, Needs, estimate_delimiter_tokens, estimate_tokens
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.text.protocol.codec import merge_turns
from moyin.text.protocol.ollama import wire

__all__ = [
    "chat_needs",
    "chat_request_to_domain",
    "embedding_needs",
    "embedding_request_to_domain",
    "generate_needs",
    "generate_request_to_domain",
]

# Members and options that change Ollama's answer and that no other protocol has. Unknown members and
# options of how to run the model are ignored, because Ollama ignores the former too.
_NATIVE_MEMBERS = frozenset({"context", "logprobs", "raw", "suffix", "template", "top_logprobs"})
_NATIVE_OPTIONS = frozenset(
    {
        "mirostat", "mirostat_eta", "mirostat_tau", "penalize_newline", "repeat_last_n", "tfs_z",
        "typical_p",
    }
)  # fmt: skip
_BUDGETS = {"low": 2048, "medium": 8192, "high": 24576}
# Characters of base64 that are enough to detect the media type of a picture.
_HEAD_CHARACTERS = 32


def chat_request_to_domain(body: wire.ChatBody, model: str) -> ChatRequest:
    """Translate a chat request to the domain.

    Raises:
        UnsupportedFeature: the domain has no place for a member; names that member.
        InvalidRequest: a tool message answers no tool call, or a picture is not base64.
    """
    _refuse_native_members(body)
    messages = body.messages or []
    system = tuple(Text(text=m.text) for m in messages if m.role == "system")
    tools = tuple(_tool(tool) for tool in body.tools or ())
    return _request(
        body, model, system=system, messages=merge_turns(_parts_by_role(messages)), tools=tools
    )


def generate_request_to_domain(body: wire.GenerateBody, model: str) -> ChatRequest:
    """Translate a prompt to a chat of one turn.

    Raises:
        UnsupportedFeature: the domain has no place for a member; names that member.
        InvalidRequest: a picture is not base64.
    """
    _refuse_native_members(body)
    system = (Text(text=body.system),) if body.system else ()
    parts: list[Part] = [Text(text=body.prompt or "")]
    parts += [_image(data, f"images.{place}") for place, data in enumerate(body.images or ())]
    turn = Message(role=Role.USER, parts=tuple(parts))
    return _request(body, model, system=system, messages=(turn,), tools=())


def embedding_request_to_domain(body: wire.EmbedBody, model: str) -> EmbeddingRequest:
    """Translate a request for embeddings to the domain. Ollama's options change no vector."""
    return EmbeddingRequest(model=model, inputs=body.inputs, dimensions=body.dimensions)


def chat_needs(body: wire.ChatBody, data: Mapping[str, Any]) -> Needs:
    """Return the abilities and the context that a chat request needs."""
    messages = body.messages or []
    images = sum(len(message.images or ()) for message in messages)
    tools = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    texts = sum(map(estimate_tokens, _prompt_texts(body)))
    tokens = texts + estimate_delimiter_tokens(len(messages)) + tools
    return _needs(body, tokens, images=images, tools=bool(body.tools))


def generate_needs(body: wire.GenerateBody) -> Needs:
    """Return the abilities and the context that a prompt needs."""
    texts = estimate_tokens(body.prompt or "") + estimate_tokens(body.system or "")
    return _needs(
        body, texts + estimate_delimiter_tokens(1), images=len(body.images or ()), tools=False
    )


def embedding_needs(body: wire.EmbedBody | wire.EmbeddingsBody) -> Needs:
    """Return the context that a request for embeddings needs."""
    sizes = [estimate_tokens(text) for text in body.inputs]
    return Needs(prompt_tokens=sum(sizes), longest_input=max(sizes, default=0), embeddings=True)


def _needs(body: wire.CallBody, text_tokens: int, *, images: int, tools: bool) -> Needs:
    return Needs(
        prompt_tokens=text_tokens + images * IMAGE_TOKENS,
        attachment_bytes=0 if body.schema_ is None else len(to_json(body.schema_)),
        max_tokens=body.output_limit,
        tools=tools,
        vision=images > 0,
        schema=body.schema_ is not None,
        thinking=bool(body.think),
    )


def _prompt_texts(body: wire.ChatBody) -> Iterator[str]:
    for message in body.messages or ():
        yield message.text
        yield message.thinking or ""
        for call in message.tool_calls or ():
            yield to_json(call.function.arguments).decode()


def _request(
    body: wire.CallBody,
    model: str,
    *,
    system: tuple[Text, ...],
    messages: tuple[Message, ...],
    tools: tuple[Tool, ...],
) -> ChatRequest:
    options = body.options or wire.Options()
    stop = options.stop
    return ChatRequest(
        model=model,
        system=system,
        messages=messages,
        tools=tools,
        output=OutputFormat(schema=body.schema_) if body.format else None,
        reasoning=_reasoning(body.think),
        max_tokens=body.output_limit,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            # Many clients always send these values, which have no effect.
            repeat_penalty=None if options.repeat_penalty == 1 else options.repeat_penalty,
            min_p=options.min_p or None,
            seed=options.seed,
        ),
    )


def _refuse_native_members(body: wire.CallBody) -> None:
    _refuse(body.extras, _NATIVE_MEMBERS, "")
    if body.options is not None:
        _refuse(body.options.extras, _NATIVE_OPTIONS, "options.")


def _refuse(members: Mapping[str, Any], native: frozenset[str], prefix: str) -> None:
    for name, value in members.items():
        if value and name in native:
            field = f"{prefix}{name}"
            raise UnsupportedFeature(f"this back end does not support {field}", field=field)


def _parts_by_role(messages: Sequence[wire.Message]) -> Iterator[tuple[Role, Iterator[Part]]]:
    calls = _PendingCalls()
    for number, message in enumerate(messages):
        if message.role != "system":
            role = Role.ASSISTANT if message.role == "assistant" else Role.USER
            yield role, _parts(message, number, calls)


class _PendingCalls:
    """Tracks the tool calls without a result, so that results without an id find their call."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, str]] = []  # id and name of the tool
        self._count = 0

    def add(self, call: wire.ToolCall) -> str:
        self._count += 1
        identity = call.id or f"call_{self._count}"
        self._pending.append((identity, call.function.name))
        return identity

    def resolve(self, message: wire.Message, number: int) -> str:
        """Return the id of the call that ``message`` answers, and remove the call."""
        if message.tool_call_id:
            self._pending = [call for call in self._pending if call[0] != message.tool_call_id]
            return message.tool_call_id
        name = message.tool_name or message.extras.get("name")
        for place, (identity, tool) in enumerate(self._pending):
            if name in (None, tool):
                del self._pending[place]
                return identity
        raise InvalidRequest(
            f"messages.{number} answers no earlier tool call", field=f"messages.{number}"
        )


def _parts(message: wire.Message, number: int, calls: _PendingCalls) -> Iterator[Part]:
    images = [
        _image(data, f"messages.{number}.images.{place}")
        for place, data in enumerate(message.images or ())
    ]
    if message.role == "tool":
        content: list[Text | Image] = [Text(text=message.text), *images]
        yield ToolResult(tool_use_id=calls.resolve(message, number), content=tuple(content))
        return
    if message.thinking:
        yield Thinking(text=message.thinking)
    if message.text or (message.role == "user" and not images):
        yield Text(text=message.text)
    yield from images
    for call in message.tool_calls or ():
        arguments = to_json(call.function.arguments).decode()
        yield ToolUse(id=calls.add(call), name=call.function.name, arguments=arguments)


def _image(data: str, field: str) -> Image:
    try:
        head = base64.b64decode(data[:_HEAD_CHARACTERS], validate=True)
    except binascii.Error:
        raise InvalidRequest(f"{field} must be base64", field=field) from None
    kind = detect_media_type(None, head)
    return Image(media_type="image/png" if kind == UNKNOWN_MEDIA_TYPE else kind, data=data)


def _tool(tool: wire.Tool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        schema=function.parameters or {"type": "object", "properties": {}},
    )


def _reasoning(think: bool | str | None) -> Reasoning | None:
    if think is None:
        return None
    if isinstance(think, bool):
        return Reasoning(enabled=think)
    return Reasoning(effort=think, budget=_BUDGETS.get(think))
