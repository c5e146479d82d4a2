from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.chat import ChatResponse, Part, StopReason, Text, Thinking, ToolUse
from moyin.domain.money import Usage
from moyin.domain.needs import ResponseConstraints
from moyin.text.routing.answer_checks import find_fault, matches_schema

SHOT = {
    "type": "object",
    "properties": {
        "shot": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["day", "night"]}},
        "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "next": {"$ref": "#"},
    },
    "required": ["shot"],
    "additionalProperties": False,
}


def make_answer(*parts: Part, stop: StopReason = StopReason.END) -> ChatResponse:
    return ChatResponse(id="a", model="m", parts=parts, stop=stop, usage=Usage())


def find_text_fault(
    text: str, constraints: ResponseConstraints | None = None, stop: StopReason = StopReason.END
) -> str | None:
    return find_fault(make_answer(Text(text=text), stop=stop), constraints or ResponseConstraints())


def test_plain_text_has_no_fault() -> None:
    assert find_text_fault("Hello!") is None
    assert find_text_fault("| a | b |\n|---|---|\n" + "-" * 500) is None
    assert find_text_fault("no " * 10) is None


def test_each_fault_is_named() -> None:
    constraints = ResponseConstraints(json=True, schema=SHOT)
    assert find_text_fault("  \n") == "empty"
    assert find_text_fault("I can't", stop=StopReason.REFUSAL) == "refused"
    assert find_text_fault("So: " + "the river and the bridge and " * 20) == "repeating"
    assert find_text_fault("ha" * 100) == "repeating"
    assert find_text_fault("{'shot': 1}", constraints) == "json"
    assert find_text_fault('{"shot": "one"}', constraints) == "schema"
    assert find_text_fault('{"shot": 1}', constraints) is None
    assert find_text_fault("[]", ResponseConstraints(json=True)) is None
    assert find_fault(make_answer(Thinking(text="hm")), ResponseConstraints()) == "empty"


def test_answer_cut_by_the_clients_limit_is_no_fault() -> None:
    assert (
        find_text_fault('{"shot":', ResponseConstraints(json=True), stop=StopReason.MAX_TOKENS)
        is None
    )
    assert find_text_fault("", stop=StopReason.MAX_TOKENS) is None
    assert find_text_fault("", stop=StopReason.STOP_SEQUENCE) is None


@pytest.mark.parametrize(
    ("name", "arguments", "expected_fault"),
    [
        ("render", '{"shot": 1}', None),
        ("render", "", None),
        ("render", '{"shot": ', "tool_arguments"),
        ("render", "[1]", "tool_arguments"),
        ("delete", "{}", "tool_name"),
    ],
)
def test_faults_of_tool_calls_are_found(
    name: str, arguments: str, expected_fault: str | None
) -> None:
    tool_call = ToolUse(id="t", name=name, arguments=arguments)
    fault = find_fault(
        make_answer(tool_call, stop=StopReason.TOOL_USE),
        ResponseConstraints(tools=frozenset({"render"})),
    )
    assert fault == expected_fault


@pytest.mark.parametrize(
    ("value", "is_valid"),
    [
        ({"shot": 1}, True),
        ({"shot": 1.0}, True),
        ({"shot": 1.5}, False),
        ({"shot": True}, False),
        ({}, False),
        ([], False),
        ({"shot": 1, "more": 1}, False),
        ({"shot": 1, "tags": ["day"]}, True),
        ({"shot": 1, "tags": ["dusk"]}, False),
        ({"shot": 1, "note": None}, True),
        ({"shot": 1, "note": 5}, False),
        ({"shot": 1, "next": {"shot": 2}}, True),
        ({"shot": 1, "next": {"shot": "2"}}, False),
    ],
)
def test_values_are_checked_against_the_schema(value: Any, is_valid: bool) -> None:
    assert matches_schema(value, SHOT) is is_valid


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/gone"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#"},
        {"pattern": "(a+)+$"},
        {"type": "thing"},
        {"properties": [], "required": "x", "enum": "x", "items": 3, "allOf": {}},
        {"anyOf": []},
    ],
)
def test_unknown_schema_keywords_pass(schema: dict[str, Any]) -> None:
    assert matches_schema({"a": "a" * 40}, schema)


def test_a_schema_that_branches_without_end_costs_bounded_work() -> None:
    branching_schema: dict[str, Any] = {"allOf": [{"$ref": "#"}] * 8}
    assert matches_schema({}, branching_schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(
    JSON, st.dictionaries(st.sampled_from(["type", "enum", "items", "properties", "$ref"]), JSON)
)
def test_no_schema_breaks_the_checker(value: Any, schema: dict[str, Any]) -> None:
    assert matches_schema(value, schema) in (True, False)
