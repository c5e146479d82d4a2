"""Chat requests: OpenAI's wire shape to the domain and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moyin.domain.chat import (
    ChatRequest,
    Image,
    Message,
    Output,
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
from moyin.errors import UnsupportedFeature
from moyin.protocols.openai import wire

__all__ = ["native_field", "to_body", "to_domain"]

# Members that change nothing in the answer: they may be dropped on the way to another protocol.
_HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
# Thinking budgets, in tokens, at which an effort word stands for what was asked.
_EFFORTS = ((2048, "low"), (8192, "medium"))
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}


def native_field(body: wire.ChatBody) -> str | None:
    """The first member that only a back end of the same wire format can take, or None."""
    if body.n is not None and body.n > 1:
        return "n"
    for name, value in body.extras.items():
        if value and name not in _HARMLESS:
            return name
    for number, message in enumerate(body.messages):
        content = message.content
        if isinstance(content, list):
            for place, part in enumerate(content):
                if isinstance(part, wire.OtherPart) and part.type != "refusal":
                    return f"messages.{number}.content.{place}"
    return None


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
    if isinstance(message, wire.AssistantMessage) and message.reasoning_content:
        yield Thinking(text=message.reasoning_content)
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


def _part(part: wire.ContentPart) -> Part:
    if isinstance(part, wire.TextPart):
        return Text(text=part.text)
    if isinstance(part, wire.ImagePart):
        return _image(part.image_url.url)
    return Text(text=str(part.extras.get("refusal", "")))


def _image(url: str) -> Image:
    if not url.startswith("data:"):
        return Image(url=url)
    head, _, data = url.partition(",")
    return Image(media_type=head[5:].partition(";")[0] or "image/png", data=data)


def _texts(content: str | list[wire.TextPart]) -> tuple[Text, ...]:
    if isinstance(content, str):
        return (Text(text=content),)
    return tuple(Text(text=part.text) for part in content)


def _tool(tool: wire.Tool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        schema=function.parameters or {"type": "object", "properties": {}},
        strict=function.strict,
    )


def _choice(body: wire.ChatBody) -> ToolChoice | None:
    choice, parallel = body.tool_choice, body.parallel_tool_calls
    if isinstance(choice, wire.NamedChoice):
        return ToolChoice(mode="tool", name=choice.function.name, parallel=parallel)
    if choice is None and parallel is None:
        return None
    return ToolChoice(mode=choice or "auto", parallel=parallel)


def _output(form: wire.ResponseFormat | None) -> Output | None:
    if form is None or form.type == "text":
        return None
    schema = form.json_schema
    if schema is None:
        return Output()
    return Output(
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


def to_body(request: ChatRequest, *, stream: bool) -> dict[str, Any]:
    """The request as an OpenAI-compatible server takes it."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": list(_messages(request)),
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "frequency_penalty": request.sampling.frequency_penalty,
        "presence_penalty": request.sampling.presence_penalty,
        "seed": request.sampling.seed,
        "tools": [_tool_body(tool) for tool in request.tools] or None,
        "response_format": _output_body(request.output),
        "reasoning_effort": _effort(request.reasoning),
        "user": request.user,
    }
    if (choice := request.tool_choice) is not None and request.tools:
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.mode == "tool" else choice.mode
        body["parallel_tool_calls"] = choice.parallel
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in body.items() if value is not None}


def _messages(request: ChatRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        yield {"role": "system", "content": "\n\n".join(part.text for part in request.system)}
    for message in request.messages:
        if message.role is Role.ASSISTANT:
            yield _assistant(message.parts)
        else:
            yield from _user(message.parts)


def _assistant(parts: Sequence[Part]) -> dict[str, Any]:
    text = "".join(part.text for part in parts if isinstance(part, Text))
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in parts
        if isinstance(part, ToolUse)
    ]
    body: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        body["tool_calls"] = calls
    if thought := "".join(part.text for part in parts if isinstance(part, Thinking)):
        body["reasoning_content"] = thought
    return body


def _user(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Tool results first, each a message of its own; pictures in them go to the user's turn,
    since a tool message holds text only."""
    rest: list[Part] = []
    for part in parts:
        if not isinstance(part, ToolResult):
            rest.append(part)
            continue
        text = "".join(item.text for item in part.content if isinstance(item, Text))
        rest.extend(item for item in part.content if isinstance(item, Image))
        content = f"Error: {text}" if part.is_error else text
        yield {"role": "tool", "tool_call_id": part.tool_use_id, "content": content}
    if len(rest) == 1 and isinstance(rest[0], Text):
        yield {"role": "user", "content": rest[0].text}
    elif rest:
        yield {"role": "user", "content": [_content(part) for part in rest]}


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        url = part.url or f"data:{part.media_type};base64,{part.data}"
        return {"type": "image_url", "image_url": {"url": url}}
    raise UnsupportedFeature(f"a user's turn can't hold {type(part).__name__}", field="messages")


def _tool_body(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _output_body(output: Output | None) -> dict[str, Any] | None:
    if output is None:
        return None
    if output.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": output.name, "schema": dict(output.schema)}
    if output.description is not None:
        schema["description"] = output.description
    if output.strict is not None:
        schema["strict"] = output.strict
    return {"type": "json_schema", "json_schema": schema}


def _effort(reasoning: Reasoning | None) -> str | None:
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.effort is not None:
        return reasoning.effort
    if reasoning.budget is None:
        return None
    return next((word for limit, word in _EFFORTS if reasoning.budget <= limit), "high")
