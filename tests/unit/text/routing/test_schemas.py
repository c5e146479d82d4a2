"""Tests that schemas that would block a local server are not sent to it, in any protocol."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.backend import ApiFormat
from moyin.errors import SchemaTooLarge, UnsupportedFeature
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from tests.unit.text.routing.router_rig import RAW, Rig

BOMB = {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}$"}
# Patterns of tools are left out instead (test_tool_schemas.py).
MANY = {"enum": [str(number) for number in range(500)]}
ABLE = ("tools", "schema")
GPT, CLAUDE = OpenAICodec(), AnthropicCodec()


def make_function_tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


PLACES: list[tuple[ProtocolCodec, str, dict[str, Any]]] = [
    (
        GPT,
        "response_format.json_schema.schema",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": BOMB}}},
    ),
    (
        GPT,
        "response_format.schema",
        {"response_format": {"type": "json_object", "schema": BOMB}},
    ),
    (GPT, "json_schema", {"json_schema": BOMB}),
    (
        GPT,
        "tools.1.function.parameters",
        {"tools": [make_function_tool({}), make_function_tool(MANY)]},
    ),
    (
        CLAUDE,
        "output_config.format.schema",
        {"output_config": {"format": {"type": "json_schema", "schema": BOMB}}},
    ),
    (CLAUDE, "output_format.schema", {"output_format": {"type": "json_schema", "schema": BOMB}}),
    (CLAUDE, "tools.0.input_schema", {"tools": [{"name": "f", "input_schema": MANY}]}),
    (OllamaChatCodec(), "format", {"format": BOMB}),
    (OllamaChatCodec(), "tools.0.function.parameters", {"tools": [make_function_tool(MANY)]}),
    (OllamaGenerateCodec(), "format", {"format": BOMB, "prompt": "x"}),
]


@pytest.mark.parametrize(("codec", "field", "members"), PLACES, ids=[place[1] for place in PLACES])
async def test_schema_beyond_the_bounds_is_sent_to_no_back_end(
    codec: ProtocolCodec, field: str, members: dict[str, Any]
) -> None:
    backend = FakeBackend(raw=RAW)
    rig = Rig(backend, abilities=ABLE)
    with pytest.raises(SchemaTooLarge) as exc_info:
        await rig.ask(codec, **members)
    assert exc_info.value.field == field
    expected_bound = ("values", 400) if "tools" in members else ("repeats", 16)
    assert exc_info.value.details == dict(zip(("bound", "limit"), expected_bound, strict=True))
    assert not backend.requests and not rig.runtimes[0].load


async def test_cloud_back_end_gets_schemas_that_own_servers_do_not() -> None:
    local_backend, cloud_backend = FakeBackend(raw=RAW), FakeBackend(raw=RAW)
    rig = Rig(local_backend, cloud_backend, abilities=ABLE)
    rig.runtimes[1].checks_schemas = False
    answer = await rig.ask(tools=[make_function_tool(MANY)])
    assert dict(answer.headers)[b"x-moyin-backend"] == b"b1"
    assert (len(local_backend.requests), len(cloud_backend.requests)) == (0, 1)


@pytest.mark.parametrize("member", ["grammar", "guided_grammar", "guided_regex"])
async def test_own_servers_get_no_grammars(member: str) -> None:
    rig = Rig(FakeBackend(raw=RAW))
    grammar_members: dict[str, Any] = {member: 'root ::= (("a"?){100}){100}'}
    with pytest.raises(UnsupportedFeature) as exc_info:
        await rig.ask(**grammar_members)
    assert exc_info.value.field == member


async def test_usual_schemas_reach_every_back_end() -> None:
    backend = FakeBackend(raw=RAW, api_format=ApiFormat.OPENAI)
    rig = Rig(backend, abilities=ABLE)
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
    answer = await rig.ask(tools=[make_function_tool(schema)])
    assert answer.body is RAW
