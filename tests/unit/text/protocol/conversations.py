"""Holds requests and responses, independent of a protocol, that use every feature."""

from __future__ import annotations

from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Image,
    Message,
    OutputFormat,
    Role,
    Sampling,
    StopReason,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from moyin.domain.money import Usage

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 1, "examples": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool(name="weather", schema=SCHEMA, description="Weather of a city", strict=True)

FULL = ChatRequest(
    model="m",
    system=(Text(text="Be brief."),),
    messages=(
        Message(
            role=Role.USER,
            parts=(
                Text(text="What is this?"),
                Image(media_type="image/png", data="aGk="),
                Image(url="https://example.org/a.png"),
            ),
        ),
        Message(
            role=Role.ASSISTANT,
            parts=(
                Text(text="I look."),
                ToolUse(id="c1", name="weather", arguments='{"city":"Paris"}'),
                ToolUse(id="c2", name="weather", arguments='{"city":"Rome"}'),
            ),
        ),
        Message(
            role=Role.USER,
            parts=(
                ToolResult(tool_use_id="c1", content=(Text(text="sunny"),)),
                ToolResult(tool_use_id="c2", content=(Text(text="rain"),)),
                Text(text="So?"),
            ),
        ),
    ),
    tools=(WEATHER,),
    tool_choice=ToolChoice(mode="tool", name="weather", parallel=False),
    output=OutputFormat(name="answer", schema=SCHEMA),
    max_tokens=99,
    stop=("END", "###"),
    sampling=Sampling(temperature=0.5, top_p=0.9),
    user="ada",
)

ANSWERS = {
    "text": ChatResponse(
        id="a1",
        model="m",
        parts=(Text(text="Hello you there"),),
        stop=StopReason.END,
        usage=Usage(input_tokens=10, cached_tokens=5, output_tokens=3),
    ),
    "cut": ChatResponse(
        id="a2",
        model="m",
        parts=(Text(text="Hello"),),
        stop=StopReason.MAX_TOKENS,
        usage=Usage(input_tokens=10, output_tokens=1),
    ),
    "tools": ChatResponse(
        id="a3",
        model="m",
        parts=(
            Text(text="Let me see"),
            ToolUse(id="c1", name="weather", arguments='{"city":"Paris"}'),
            ToolUse(id="c2", name="weather", arguments='{"city":"Rome"}'),
        ),
        stop=StopReason.TOOL_USE,
        usage=Usage(input_tokens=10, output_tokens=9),
    ),
    "thinking": ChatResponse(
        id="a4",
        model="m",
        parts=(Thinking(text="hm hm"), Text(text="Yes")),
        stop=StopReason.END,
        usage=Usage(input_tokens=10, output_tokens=9, reasoning_tokens=0),
    ),
    "refusal": ChatResponse(
        id="a5",
        model="m",
        parts=(Text(text="No"),),
        stop=StopReason.REFUSAL,
        usage=Usage(input_tokens=10, output_tokens=1),
    ),
}
