from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json

from moyin.domain.schemas import drop_expensive_patterns
from moyin.errors import SchemaTooLarge
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.responses.codec import ResponsesCodec
from moyin.text.routing.tool_schemas import limit_schemas

# As Claude Code's tool `SendMessage` has it.
PATTERNS = {"allOf": [{"pattern": "^[^\\n\\r]*$"}, {"pattern": "^[\\s\\S]{0,300}$"}]}
SCHEMA = {"type": "object", "properties": {"to": {"type": "string", **PATTERNS}}}
MESSAGES = [{"role": "user", "content": "hi"}]
CALLS: dict[str, tuple[ProtocolCodec, dict[str, Any], list[str]]] = {
    "anthropic": (
        AnthropicCodec(),
        {"messages": MESSAGES, "max_tokens": 9},
        ["input_schema"],
    ),
    "openai": (OpenAICodec(), {"messages": MESSAGES}, ["function", "parameters"]),
    "ollama": (OllamaChatCodec(), {"messages": MESSAGES}, ["function", "parameters"]),
    "responses": (ResponsesCodec(), {"input": "hi"}, ["parameters"]),
}


def make_tool(protocol: str, schema: Any, **members: Any) -> dict[str, Any]:
    if protocol in ("openai", "ollama"):
        function = {"name": "send", "parameters": schema, **members}
        return {"type": "function", "function": function}
    if protocol == "responses":
        return {"type": "function", "name": "send", "parameters": schema, **members}
    return {"name": "send", "input_schema": schema, **members}


@pytest.mark.parametrize("protocol", CALLS)
def test_an_expensive_pattern_of_a_tool_is_left_out(protocol: str) -> None:
    codec, body, path = CALLS[protocol]
    tools = [make_tool(protocol, {"type": "object"}), make_tool(protocol, SCHEMA)]
    if protocol == "responses":
        tools[0]["name"] = "other"
    request = codec.parse(to_json({"model": "m", **body, "tools": tools}))
    limited_request = limit_schemas(codec, request)
    schema: Any = limited_request.data["tools"][1]
    for key in path:
        schema = schema[key]
    patterns = schema["properties"]["to"]["allOf"]
    assert patterns == [{"pattern": "^[^\\n\\r]*$"}, {}]
    assert (
        limited_request.data["tools"][0] == tools[0]
        and limited_request.data.keys() == request.data.keys()
    )
    assert request.data["tools"] == tools, "the client's request is unchanged"


@pytest.mark.parametrize("protocol", ["anthropic", "openai", "responses"])
def test_a_strict_tool_keeps_its_patterns_and_is_refused(protocol: str) -> None:
    codec, body, _ = CALLS[protocol]
    tools = [make_tool(protocol, SCHEMA, strict=True)]
    request = codec.parse(to_json({"model": "m", **body, "tools": tools}))
    with pytest.raises(SchemaTooLarge):
        limit_schemas(codec, request)


def test_an_answer_keeps_its_pattern_and_other_bounds_hold() -> None:
    codec, body, _ = CALLS["openai"]
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    request = codec.parse(to_json({"model": "m", **body, "response_format": response_format}))
    with pytest.raises(SchemaTooLarge):
        limit_schemas(codec, request)
    large_schema = {**SCHEMA, "required": [], "enum": [str(number) for number in range(500)]}
    request = codec.parse(
        to_json({"model": "m", **body, "tools": [make_tool("openai", large_schema)]})
    )
    with pytest.raises(SchemaTooLarge):
        limit_schemas(codec, request)


def test_cheap_schemas_are_not_copied() -> None:
    schema = {"properties": {"pattern": {"pattern": "^a+$"}, "b": [{"pattern": 3}]}}
    assert drop_expensive_patterns(schema) is schema
    codec, body, _ = CALLS["openai"]
    request = codec.parse(to_json({"model": "m", **body, "tools": [make_tool("openai", schema)]}))
    assert limit_schemas(codec, request) is request
