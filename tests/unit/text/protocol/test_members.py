"""Tests that no member which a vendor's SDK can send is silently dropped.

Each member changes the parsed request, is refused by name, or is listed in `DROPPED` and in
docs/reference/matrix.md. The same holds when a parsed request is encoded for a back end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic_core import to_json

from moyin.domain import chat
from moyin.errors import RequestError
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.anthropic.request_to_upstream import chat_request_to_upstream as to_claude
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.request_to_upstream import chat_request_to_upstream as to_ollama
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream as to_openai
from moyin.text.protocol.responses.codec import ResponsesCodec
from tests.unit.text.protocol.conversations import SCHEMA

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "matrix.md"
CODECS: Mapping[str, ProtocolCodec] = {
    "OpenAI": OpenAICodec(),
    "Responses": ResponsesCodec(),
    "Anthropic": AnthropicCodec(),
}
MESSAGES = [{"role": "user", "content": "hi"}]
FUNCTION = {"name": "weather", "parameters": SCHEMA}
# All members but those dropped are tested beside these.
BASES: Mapping[str, dict[str, Any]] = {
    "OpenAI": {"messages": MESSAGES, "tools": [{"type": "function", "function": FUNCTION}]},
    "Responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
    "Anthropic": {
        "messages": MESSAGES,
        "max_tokens": 10,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
    },
}
MEMBERS: Mapping[str, dict[str, Any]] = {
    "OpenAI": {
        "audio": {"voice": "ash", "format": "mp3"},
        "frequency_penalty": 0.5,
        "function_call": "auto",
        "functions": [FUNCTION],
        "logit_bias": {"1": 5},
        "logprobs": True,
        "max_completion_tokens": 7,
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "other"}],
        "modalities": ["text", "audio"],
        "moderation": {"model": "omni"},
        "n": 2,
        "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "x"},
        "presence_penalty": 0.5,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "seed": 7,
        "stop": ["x"],
        "temperature": 0.5,
        "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "other", "parameters": SCHEMA}}],
        "top_logprobs": 3,
        "top_p": 0.5,
        "user": "ada",
        "verbosity": "low",
        "web_search_options": {"search_context_size": "low"},
    },
    "Responses": {
        "access_programs": ["x"],
        "background_options": {"x": 1},
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
        "conversation": "conv_1",
        "image": {"x": 1},
        "include": ["message.output_text.logprobs"],
        "input": "other",
        "instructions": "Be kind.",
        "max_output_tokens": 7,
        "moderation": {"model": "omni"},
        "parallel_tool_calls": False,
        "prompt": {"id": "pmpt_1"},
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}},
        "tool_choice": "required",
        "tools": [{"type": "function", "name": "other", "parameters": SCHEMA}],
        "top_logprobs": 3,
        "top_p": 0.5,
        "truncation": "auto",
        "user": "ada",
    },
    "Anthropic": {
        "container": "container_1",
        "inference_geo": "eu",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "other"}],
        "metadata": {"user_id": "ada"},
        "output_config": {"effort": "low"},
        "stop_sequences": ["x"],
        "system": "Be kind.",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tool_choice": {"type": "any"},
        "tools": [{"name": "other", "input_schema": SCHEMA}],
    },
}
# They change nothing in the answer. The page of the matrix lists them.
DROPPED: Mapping[str, dict[str, Any]] = {
    "OpenAI": {
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
    },
    "Responses": {
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "flex",
    },
    "Anthropic": {
        "cache_control": {"type": "ephemeral"},
        "diagnostics": {"x": 1},
        "service_tier": "auto",
        "speed": "fast",
        "user_profile_id": "u",
        "workspace_id": "w",
    },
}
# What the gateway does itself, whatever the back end.
OWN: Mapping[str, frozenset[str]] = {
    "OpenAI": frozenset({"model", "stream_options"}),
    "Responses": frozenset(
        {"background", "model", "previous_response_id", "store", "stream_options"}
    ),
    "Anthropic": frozenset({"model"}),
}
TYPES: Mapping[str, Any] = {
    "OpenAI": CompletionCreateParamsBase,
    "Responses": ResponseCreateParamsBase,
    "Anthropic": MessageCreateParamsBase,
}


def translate(protocol: str, members: Mapping[str, Any]) -> chat.ChatRequest:
    body = {"model": "m", **BASES[protocol], **members}
    parsed_request = CODECS[protocol].parse(to_json(body))
    request = parsed_request.to_domain("m")
    assert isinstance(request, chat.ChatRequest)
    return request


@pytest.mark.parametrize("protocol", TYPES)
def test_every_member_of_the_sdk_is_listed_here(protocol: str) -> None:
    listed_members = MEMBERS[protocol].keys() | DROPPED[protocol].keys() | OWN[protocol]
    assert listed_members == get_type_hints(TYPES[protocol]).keys()


@pytest.mark.parametrize(
    ("protocol", "name"), [(protocol, name) for protocol in TYPES for name in MEMBERS[protocol]]
)
def test_a_member_is_translated_or_refused_by_name(protocol: str, name: str) -> None:
    member_value = MEMBERS[protocol][name]
    try:
        request = translate(protocol, {name: member_value})
    except RequestError as error:
        assert (error.field or "").split(".")[0] == name, error
    else:
        assert request != translate(protocol, {}), f"{name} is dropped"


@pytest.mark.parametrize(
    ("protocol", "name"), [(protocol, name) for protocol in TYPES for name in DROPPED[protocol]]
)
def test_a_dropped_member_is_documented(protocol: str, name: str) -> None:
    assert translate(protocol, {name: DROPPED[protocol][name]}) == translate(protocol, {})
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {protocol} |")]
    assert f"`{name}`" in line


BASE = chat.ChatRequest(
    model="m",
    messages=(chat.Message(role=chat.Role.USER, parts=(chat.Text(text="hi"),)),),
    tools=(chat.Tool(name="weather", schema=SCHEMA),),
)
CHANGES: Mapping[str, Any] = {
    "messages": (chat.Message(role=chat.Role.USER, parts=(chat.Text(text="other"),)),),
    "system": (chat.Text(text="Be kind."),),
    "tools": (chat.Tool(name="weather", schema=SCHEMA, description="d"),),
    "tool_choice": chat.ToolChoice(mode="required"),
    "output": chat.OutputFormat(schema=SCHEMA),
    "reasoning": chat.Reasoning(budget=2000),
    "max_tokens": 7,
    "stop": ("x",),
    "user": "ada",
    "logprobs": 3,
}
SAMPLING: Mapping[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repeat_penalty": 1.1,
    "min_p": 0.1,
    "seed": 7,
}
UPSTREAMS: Mapping[str, Callable[[chat.ChatRequest], dict[str, Any]]] = {
    "Claude": to_claude,
    "Ollama": lambda request: to_ollama(request, context=8192, stream=False),
    "OpenAI-compatible": lambda request: to_openai(request, stream=False),
}
# Ollama has no word for the client's end user. The adapter of OpenAI's API adds the last two, under
# the names of the server that it finds, or refuses them (`tests/unit/text/backends/test_openai.py`).
EXCEPTIONS = frozenset(
    {
        ("Ollama", "user"),
        ("OpenAI-compatible", "repeat_penalty"),
        ("OpenAI-compatible", "min_p"),
    }
)


def test_every_member_of_the_domain_is_listed_here() -> None:
    request_members = {field.name for field in fields(chat.ChatRequest)} - {"model", "sampling"}
    assert CHANGES.keys() == request_members
    assert SAMPLING.keys() == {field.name for field in fields(chat.Sampling)}


@pytest.mark.parametrize(
    ("backend", "name"),
    [pair for pair in product(UPSTREAMS, [*CHANGES, *SAMPLING]) if pair not in EXCEPTIONS],
)
def test_a_member_of_the_domain_reaches_the_back_end_or_is_refused(backend: str, name: str) -> None:
    if name in CHANGES:
        request = replace(BASE, **{name: CHANGES[name]})
    else:
        request = replace(BASE, sampling=chat.Sampling(**{name: SAMPLING[name]}))
    encode = UPSTREAMS[backend]
    try:
        body = encode(request)
    except RequestError as error:
        assert error.field == name, error
    else:
        assert body != encode(BASE), f"{name} is dropped"
