"""JSON schemas that Claude is bound to, of answers and of strict tools, as it takes them. Pure.

Source: "JSON Schema limitations" in Anthropic's documentation of structured outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moyin.errors import UnsupportedFeature

__all__ = ["closed"]

# Keywords that Claude answers with 400.
_REFUSED = frozenset(
    {
        "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength", "maxProperties",
        "maximum", "minLength", "minProperties", "minimum", "multipleOf", "uniqueItems",
    }
)  # fmt: skip
_FORMATS = (
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
)  # fmt: skip
# Expressions that it has no automaton for: they look around, back, or for the end of a word. What a
# backslash escapes is none of that.
_HARD_PATTERN = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?!:)|\\[bB1-9])")
# Where a schema holds other schemas: one, several, or several by name.
_ONE = frozenset({"items"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "properties"})


def closed(schema: Mapping[str, Any], *, field: str = "response_format") -> dict[str, Any]:
    """``schema``, whose objects hold no other members than those that it names: Claude refuses
    others, which is what a schema allows that says nothing. It refuses bounds, too: what it does
    not check goes into descriptions, so that the model may follow it.

    Args:
        field: of the request, for errors.

    Raises:
        UnsupportedFeature: an object names no members, so that closed it could only be empty, or
            the SDK does not understand the schema. Another back end may.
    """
    objects = list(_objects(schema))
    if all(map(_is_closed, objects)):
        fitting: dict[str, Any] = _checkable(schema)
        return fitting
    if "definitions" in schema:
        # The SDK would keep what points there, and lose what it points at.
        raise UnsupportedFeature(
            "Claude looks for a schema's parts in $defs, not in definitions", field=field
        )
    if not all(one.get("properties") or _is_closed(one) for one in objects):
        raise UnsupportedFeature(
            "Claude can't answer with objects whose members are not named", field=field
        )
    # Here, because it takes a second, which whoever only translates need not wait for.
    from anthropic import transform_schema

    try:
        return transform_schema(dict(schema))
    # It says no more than that it did not expect what it found.
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UnsupportedFeature(
            "Claude can't be bound to this JSON schema", field=field
        ) from error


def _checkable(schema: Any) -> Any:
    """A part of a schema with what Claude does not check in its description, as Anthropic's SDK
    puts it there. The SDK itself would refuse what Claude takes: several types, definitions."""
    if not isinstance(schema, Mapping):
        return schema
    part: dict[str, Any] = {}
    told: list[str] = []
    for name, value in schema.items():
        if _is_refused(name, value):
            told.append(f"{name}: {value}")
        elif name in _ONE:
            part[name] = _checkable(value)
        elif name in _SEVERAL and isinstance(value, list):
            # It knows no ``oneOf``, whose parts seldom overlap.
            known = "anyOf" if name == "oneOf" and "anyOf" not in schema else name
            part[known] = list(map(_checkable, value))
        elif name in _NAMED and isinstance(value, Mapping):
            part[name] = {key: _checkable(one) for key, one in value.items()}
        else:
            part[name] = value
    if told:
        said = (part.get("description"), f"{{{', '.join(told)}}}")
        part["description"] = "\n\n".join(str(one) for one in said if one)
    return part


def _is_refused(keyword: str, value: Any) -> bool:
    match keyword:
        case "minItems":
            return value not in (0, 1)
        case "format":
            return value not in _FORMATS
        case "pattern":
            return isinstance(value, str) and _HARD_PATTERN.search(value) is not None
        case _:
            return keyword in _REFUSED


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every part of ``schema`` that describes objects."""
    if isinstance(schema, Mapping):
        kind = schema.get("type")
        if kind == "object" or (isinstance(kind, list) and "object" in kind):
            yield schema
        for part in schema.values():
            yield from _objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _objects(part)


def _is_closed(schema: Mapping[str, Any]) -> bool:
    return schema.get("additionalProperties") is False
