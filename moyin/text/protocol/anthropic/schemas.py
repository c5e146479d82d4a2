"""Translates the JSON schemas that constrain Claude, those of answers and of strict tools.

Source: "JSON Schema limitations" in Anthropic's documentation of structured outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moyin.errors import UnsupportedFeature

__all__ = ["to_claude_schema"]

# Keywords that Claude refuses with status 400.
_REFUSED = frozenset(
    {
        "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength", "maxProperties",
        "maximum", "minLength", "minProperties", "minimum", "multipleOf", "uniqueItems",
    }
)  # fmt: skip
_FORMATS = (
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
)  # fmt: skip
# Claude refuses patterns with look-around, back references and word boundaries. An escaped
# backslash before them makes them literal text.
_REFUSED_PATTERN = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?!:)|\\[bB1-9])")
# Keywords that hold one schema, a list of schemas, or schemas by name.
_ONE = frozenset({"items"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "properties"})


def to_claude_schema(
    schema: Mapping[str, Any], *, field: str = "response_format"
) -> dict[str, Any]:
    """Return ``schema`` with closed objects, and without the keywords that Claude refuses.

    Claude refuses objects that allow unnamed members, which is the default in JSON Schema. It
    also refuses bounds: these go into descriptions, so that the model may follow them.

    Args:
        field: the request's field that holds the schema, for errors.

    Raises:
        UnsupportedFeature: an object names no members, so that it would be empty once closed, or
            the SDK does not understand the schema. Another back end may.
    """
    objects = list(_objects(schema))
    if all(map(_is_closed, objects)):
        supported: dict[str, Any] = _move_refused(schema)
        return supported
    if "definitions" in schema:
        # The SDK would keep the references and lose the definitions.
        raise UnsupportedFeature(
            "Claude supports $defs in a JSON schema, not definitions", field=field
        )
    if not all(part.get("properties") or _is_closed(part) for part in objects):
        raise UnsupportedFeature(
            "Claude supports only objects whose properties the JSON schema names", field=field
        )
    # Imported here because the import takes a second, which most processes do not need.
    from anthropic import transform_schema

    try:
        return transform_schema(dict(schema))
    # The SDK raises these for any schema that it does not expect.
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UnsupportedFeature("Claude does not support this JSON schema", field=field) from error


def _move_refused(schema: Any) -> Any:
    """Move the keywords that Claude refuses into descriptions, as Anthropic's SDK does.

    The SDK itself refuses schemas that Claude accepts, with several types or with definitions.
    """
    if not isinstance(schema, Mapping):
        return schema
    part: dict[str, Any] = {}
    refused: list[str] = []
    for name, value in schema.items():
        if _is_refused(name, value):
            refused.append(f"{name}: {value}")
        elif name in _ONE:
            part[name] = _move_refused(value)
        elif name in _SEVERAL and isinstance(value, list):
            # Claude refuses ``oneOf``; its alternatives seldom overlap, so ``anyOf`` is as good.
            keyword = "anyOf" if name == "oneOf" and "anyOf" not in schema else name
            part[keyword] = list(map(_move_refused, value))
        elif name in _NAMED and isinstance(value, Mapping):
            part[name] = {key: _move_refused(member) for key, member in value.items()}
        else:
            part[name] = value
    if refused:
        texts = (part.get("description"), f"{{{', '.join(refused)}}}")
        part["description"] = "\n\n".join(str(text) for text in texts if text)
    return part


def _is_refused(keyword: str, value: Any) -> bool:
    match keyword:
        case "minItems":
            return value not in (0, 1)
        case "format":
            return value not in _FORMATS
        case "pattern":
            return isinstance(value, str) and _REFUSED_PATTERN.search(value) is not None
        case _:
            return keyword in _REFUSED


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every part of ``schema`` that describes objects."""
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
