"""Requests: Ollama's wire shapes to the domain. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

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
from moyin.domain.media import UNKNOWN, media_type
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.text.protocol.ollama import wire

__all__ = ["chat_to_domain", "embed_to_domain", "generate_to_domain"]

# Members and options that change what Ollama answers and that no other protocol carries. What Ollama
# itself does not know it ignores, and so it is ignored here; so are options of how to run the model.
_NATIVE = frozenset({"context", "logprobs", "raw", "suffix", "template", "top_logprobs"})
_NATIVE_OPTIONS = frozenset(
    {
        "mirostat", "mirostat_eta", "mirostat_tau", "penalize_newline", "repeat_last_n", "tfs_z",
        "typical_p",
    }
)  # fmt: skip
_BUDGETS = {"low": 2048, "medium": 8192, "high": 24576}
# Of base64: enough to tell a picture's type.
_HEAD_CHARACTERS = 32


def chat_to_domain(body: wire.ChatBody, model: str) -> ChatRequest:
    """A chat in the domain's words.

    Raises:
        UnsupportedFeature: it uses a member that the domain can't carry.
        InvalidRequest: a tool message answers to no call; a picture is no base64.
    """
    _refuse_native(body)
    messages = body.messages or []
    system = tuple(Text(text=m.text) for m in messages if m.role == "system")
    tools = tuple(_tool(tool) for tool in body.tools or ())
    return _request(body, model, system=system, messages=_turns(messages), tools=tools)


def generate_to_domain(body: wire.GenerateBody, model: str) -> ChatRequest:
    """A prompt as a chat of one turn.

    Raises:
        UnsupportedFeature: it uses a member that the domain can't carry.
        InvalidRequest: a picture is no base64.
    """
    _refuse_native(body)
    system = (Text(text=body.system),) if body.system else ()
    parts: list[Part] = [Text(text=body.prompt or "")]
    parts += [_image(data, f"images.{place}") for place, data in enumerate(body.images or ())]
    turn = Message(role=Role.USER, parts=tuple(parts))
    return _request(body, model, system=system, messages=(turn,), tools=())


def embed_to_domain(body: wire.EmbedBody, model: str) -> EmbeddingRequest:
    """The request in the domain's words. Ollama's options change no vector."""
    return EmbeddingRequest(model=model, inputs=body.inputs, dimensions=body.dimensions)


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
            # These values change nothing; many clients send them always.
            repeat_penalty=None if options.repeat_penalty == 1 else options.repeat_penalty,
            min_p=options.min_p or None,
            seed=options.seed,
        ),
    )


def _refuse_native(body: wire.CallBody) -> None:
    _refuse(body.extras, _NATIVE, "")
    if body.options is not None:
        _refuse(body.options.extras, _NATIVE_OPTIONS, "options.")


def _refuse(members: Mapping[str, Any], native: frozenset[str], prefix: str) -> None:
    for name, value in members.items():
        if value and name in native:
            field = f"{prefix}{name}"
            raise UnsupportedFeature(f"{field} can't be carried to this back end", field=field)


def _turns(messages: Sequence[wire.Message]) -> tuple[Message, ...]:
    """Turns that alternate: several tool messages and the user's text after them are one."""
    turns: list[tuple[Role, list[Part]]] = []
    calls = _Calls()
    for number, message in enumerate(messages):
        if message.role == "system":
            continue
        role = Role.ASSISTANT if message.role == "assistant" else Role.USER
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].extend(_parts(message, number, calls))
    return tuple(Message(role=role, parts=tuple(parts)) for role, parts in turns)


class _Calls:
    """Tool calls that wait for their results, so that results without an id find theirs."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, str]] = []  # id and tool
        self._made = 0

    def add(self, call: wire.ToolCall) -> str:
        self._made += 1
        identity = call.id or f"call_{self._made}"
        self._waiting.append((identity, call.function.name))
        return identity

    def answered(self, message: wire.Message, number: int) -> str:
        """The id of the call that ``message`` answers."""
        if message.tool_call_id:
            self._waiting = [call for call in self._waiting if call[0] != message.tool_call_id]
            return message.tool_call_id
        name = message.tool_name or message.extras.get("name")
        for place, (identity, tool) in enumerate(self._waiting):
            if name in (None, tool):
                del self._waiting[place]
                return identity
        raise InvalidRequest(
            f"messages.{number} answers to no tool call before it", field=f"messages.{number}"
        )


def _parts(message: wire.Message, number: int, calls: _Calls) -> Iterator[Part]:
    images = [
        _image(data, f"messages.{number}.images.{place}")
        for place, data in enumerate(message.images or ())
    ]
    if message.role == "tool":
        content: list[Text | Image] = [Text(text=message.text), *images]
        yield ToolResult(tool_use_id=calls.answered(message, number), content=tuple(content))
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
    kind = media_type(None, head)
    return Image(media_type="image/png" if kind == UNKNOWN else kind, data=data)


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
