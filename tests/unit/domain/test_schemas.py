"""Tests which JSON schemas are simple enough for a server that compiles them to grammars."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from moyin.domain.schemas import SchemaBounds, check_schemas
from moyin.errors import SchemaTooLarge

BOUNDS = SchemaBounds()


def check_tool_schemas(*schemas: Any) -> None:
    check_schemas((f"tools.{n}.function.parameters", schema) for n, schema in enumerate(schemas))


def find_exceeded_bound(*schemas: Any) -> tuple[str, str | None]:
    """Return the name of the bound that the schemas exceed, and the error's field.

    Fails if the schemas exceed no bound.
    """
    with pytest.raises(SchemaTooLarge) as exc_info:
        check_tool_schemas(*schemas)
    error = exc_info.value
    assert f"{error.details['limit']:,}" in error.message or "refer" in error.message
    assert error.field is not None and error.message.startswith(error.field)
    return error.details["bound"], error.field


def make_object_schema(*names: str, **keywords: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        **keywords,
    }


def make_pattern_schema(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


class Node(BaseModel):
    name: str
    kind: str | int | None = None
    children: list[Node] = []


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        None,
        make_object_schema("a", "b", required=["a"], additionalProperties=False),
        Node.model_json_schema(),
        {"enum": [f"country {n}" for n in range(200)]},
        {"anyOf": [make_object_schema(f"a{n}") for n in range(100)]},
        {"type": "array", "items": {"type": "string", "maxLength": 500}, "maxItems": 50},
        make_pattern_schema("^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"),
        make_pattern_schema(r"^((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)$"),
        make_pattern_schema(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$"),
        make_pattern_schema(f"^({'|'.join(f'c{n}' for n in range(60))})$"),
        make_pattern_schema(r"^#[0-9a-fA-F]{6}$"),
        make_pattern_schema(r"^[a-z][a-z0-9_-]{0,63}(/[a-z0-9._-]+)*$"),
        make_pattern_schema(r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9a-zA-Z.-]+)?$"),
        make_pattern_schema(r"^[^@ ]+@[^@ ]+\.[a-z]{2,}$"),
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/none"},
    ],
)
def test_common_schemas_are_accepted(schema: Any) -> None:
    check_tool_schemas(schema)


def test_tools_of_an_agent_are_accepted() -> None:
    check_tool_schemas(
        *(make_object_schema(*(f"argument_{n}" for n in range(15))) for _ in range(100))
    )


@pytest.mark.parametrize(
    ("schema", "exceeded_bound"),
    [
        ({"enum": [f"v{n}" for n in range(4_000)]}, "values"),
        ({"enum": [f"v{n}" for n in range(201)]}, "alternatives"),
        ({"enum": ["x" * 30 + str(n) for n in range(190)]}, "characters"),
        ({"anyOf": [{"const": n} for n in range(201)]}, "alternatives"),
        ({"anyOf": [{"enum": [f"{a}{n}" for n in range(70)]} for a in "abc"]}, "alternatives"),
        (make_object_schema(*(f"p{n}" for n in range(257))), "properties"),
        (
            {"allOf": [make_object_schema(*(f"{a}{n}" for n in range(90))) for a in "abc"]},
            "properties",
        ),
        (make_object_schema(a={"description": "x" * 300_000}), "bytes"),
        (make_pattern_schema("a" * 257), "pattern"),
        (make_pattern_schema("^(a?){100}b$"), "repeats"),
        (make_pattern_schema("^((((a?){9}){9}){9}){9}$"), "repeats"),
        (make_pattern_schema("^(a{0,100}){0,100}$"), "repeats"),
        (make_pattern_schema("a?" * 100), "repeats"),
        (make_pattern_schema("^([ a]?){17}b$"), "repeats"),
        (make_pattern_schema("^(a|b|c|d?){8}$"), "repeats"),
        (make_pattern_schema("[ ]{0,2000}"), "repeats"),
        ({"type": "object", "patternProperties": {"(a?){100}": {}}}, "repeats"),
        ({"prefixItems": [make_pattern_schema("a?" * 12)] * 100}, "patterns"),
    ],
)
def test_schema_that_blocks_a_server_is_refused(schema: Any, exceeded_bound: str) -> None:
    assert find_exceeded_bound(schema) == (exceeded_bound, "tools.0.function.parameters")


def test_references_are_expanded_before_counting() -> None:
    definitions: dict[str, Any] = {"a0": {"type": "string"}}
    for n in range(1, 13):
        definitions[f"a{n}"] = {"anyOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2}
    assert find_exceeded_bound({"$ref": "#/$defs/a12", "$defs": definitions})[0] == "alternatives"


def test_a_long_chain_of_references_is_refused() -> None:
    definitions: dict[str, Any] = {"a0": {"type": "string"}}
    for n in range(1, 3_000):
        definitions[f"a{n}"] = {"$ref": f"#/$defs/a{n - 1}"}
    assert find_exceeded_bound({"$ref": "#/$defs/a2999", "$defs": definitions})[0] == "depth"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    ],
)
def test_directly_recursive_schema_is_refused(schema: Any) -> None:
    assert find_exceeded_bound(schema)[0] == "alternatives"


def test_depth_and_number_of_schema_nodes_are_bounded() -> None:
    deep_schema: Any = {"type": "integer"}
    for _ in range(40):
        deep_schema = make_object_schema(items=deep_schema)
    assert find_exceeded_bound(deep_schema)[0] == "depth"
    large_schema = {
        "type": "object",
        "properties": {f"p{n}": make_object_schema(*map(str, range(40))) for n in range(99)},
    }
    assert find_exceeded_bound(large_schema)[0] == "nodes"


def test_bounds_apply_to_all_schemas_of_a_request() -> None:
    enum_schema = {"enum": [f"v{n}" for n in range(200)]}
    check_tool_schemas(enum_schema, enum_schema)
    assert find_exceeded_bound(enum_schema, enum_schema, enum_schema) == (
        "values",
        "tools.2.function.parameters",
    )
