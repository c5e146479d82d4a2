"""Chat requests: OpenAI's wire shape to the domain. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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
from moyin.text.protocol.openai import wire

__all__ = ["native_field", "to_domain"]

# Members that change nothing in the answer, or only hint: they may be dropped on the way to another
# protocol.
_HARMLESS = frozenset(
    {
        "annotations", "detail", "index", "metadata", "name", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "provider_specific_fields", "reasoning",
        "refusal", "safety_identifier", "service_tier", "store",
    }
)  # fmt: skip
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}


def native_field(body: wire.ChatBody) -> str | None:
    """The first member that only a back end of the same wire format can take, or None."""
    if body.n is not None and body.n > 1:
        return "n"
    for number, message in enumerate(body.messages):
        content = message.content
        if isinstance(content, list):
            for place, part in enumerate(content):
                if isinstance(part, wire.OtherPart) and part.type != "refusal":
                    return f"messages.{number}.content.{place}"
    # What every model does unless it is asked for something else.
    usual = body.extras.get("verbosity") == "medium"
    return unsupported_field(body, _HARMLESS | {"verbosity"} if usual else _HARMLESS)


def to_domain(body: wire.ChatBody) -> ChatRequest:
    """The request in the domain's words.

    Raises:
        UnsupportedFeature: it uses a member that the domain can't carry.
    """
    if (field := native_field(body)) is not None:
        raise UnsupportedFeature(f"{field} can't be carried to this back end", field=field)
    system = tuple(
        text
        for message in body.messages
        if isinstance(message, wire.SystemMessage)
        for text in _texts(message.content)
    )
    return ChatRequest(
        model=body.model,
        system=system,
        messages=_merged(body.messages),
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


def _merged(messages: Sequence[wire.Message]) -> tuple[Message, ...]:
    """Turns that alternate: several tool messages and the user's text after them are one."""
    turns: list[tuple[Role, list[Part]]] = []
    for message in messages:
        if isinstance(message, wire.SystemMessage):
            continue
        role = Role.ASSISTANT if isinstance(message, wire.AssistantMessage) else Role.USER
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].extend(_parts(message))
    return tuple(Message(role=role, parts=tuple(parts)) for role, parts in turns)


def _parts(message: wire.Message) -> Iterator[Part]:
    if isinstance(message, wire.ToolMessage):
        yield ToolResult(tool_use_id=message.tool_call_id, content=tuple(_texts(message.content)))
        return
    if isinstance(message, wire.AssistantMessage):
        yield from _thoughts(message)
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


def _thoughts(message: wire.AssistantMessage) -> Iterator[Thinking]:
    """Claude's own blocks where the client kept them: it takes back what it signed itself."""
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


def _cache(marked: wire.Marked) -> str | None:
    control = marked.cache_control
    return None if control is None else control.ttl or "5m"


def _tool(tool: wire.Tool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        # Left out means none. Closed, as a strict tool's must be.
        schema=function.parameters
        or {"type": "object", "properties": {}, "additionalProperties": False},
        strict=function.strict,
        cache=_cache(tool),
    )


def _choice(body: wire.ChatBody) -> ToolChoice | None:
    choice, parallel = body.tool_choice, body.parallel_tool_calls
    if not body.tools and choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice needs tools", field="tool_choice")
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
