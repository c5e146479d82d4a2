"""Translates the JSON schemas of answers and of strict tools to the subset that Claude supports.

Source: "JSON Schema limitations" in Anthropic's documentation of structured outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moyin.errors import UnsupportedFeature

# Claude refuses these keywords with status 400.
_REFUSED_KEYWORDS = frozenset(
    {
        "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength", "maxProperties",
        "maximum", "minLength", "minProperties", "minimum", "multipleOf", "uniqueItems",
    }
)  # fmt: skip
_ACCEPTED_FORMATS = (
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
)  # fmt: skip
# Matches look-around, back references and word boundaries, which Claude refuses, unless an escaped
# backslash makes them literal text.
_REFUSED_PATTERN = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?!:)|\\[bB1-9])")
# Keywords whose value is one schema, a list of schemas, or schemas by name.
_SCHEMA_KEYWORDS = frozenset({"items"})
_SCHEMA_LIST_KEYWORDS = frozenset({"allOf", "anyOf", "oneOf"})
_SCHEMA_MAP_KEYWORDS = frozenset({"$defs", "definitions", "properties"})


def to_claude_schema(
    schema: Mapping[str, Any], *, field: str = "response_format"
) -> dict[str, Any]:
    """Translate a JSON schema to the subset that Claude supports.

    Objects get ``"additionalProperties": false``, which Claude requires. Keywords that Claude
    refuses, such as bounds, move into descriptions, so that the model may follow them.

    Args:
        field: the request's field with the schema, which errors name.

    Raises:
        UnsupportedFeature: the schema of an object has no ``properties``, so that Claude would
            allow only an empty object; or Anthropic's SDK does not support the schema. Another back
            end may support it.
    """
    object_schemas = list(_iterate_object_schemas(schema))
    if all(map(_is_closed, object_schemas)):
        claude_schema: dict[str, Any] = _move_refused_keywords(schema)
        return claude_schema
    if "definitions" in schema:
        # Anthropic's SDK would drop the definitions but not the references to them.
        raise UnsupportedFeature(
            f"{field}: Claude does not support 'definitions' in a JSON schema: use '$defs'",
            field=field,
        )
    if not all(
        object_schema.get("properties") or _is_closed(object_schema)
        for object_schema in object_schemas
    ):
        raise UnsupportedFeature(
            f"{field}: for Claude, every object in a JSON schema must have properties", field=field
        )
    # Imported here because the import takes a second, which most processes do not need.
    from anthropic import transform_schema

    try:
        return transform_schema(dict(schema))
    # The SDK raises these for any schema that it does not expect.
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UnsupportedFeature(
            f"{field}: Claude's structured outputs do not support this JSON schema: simplify it or "
            "choose another model",
            field=field,
        ) from error


def _move_refused_keywords(schema: Any) -> Any:
    """Move the keywords that Claude refuses into descriptions, as Anthropic's SDK does.

    The SDK is not used for this, because it refuses some schemas that Claude accepts: those with
    several types or with definitions.
    """
    if not isinstance(schema, Mapping):
        return schema
    translated_schema: dict[str, Any] = {}
    refused_keywords: list[str] = []
    for name, value in schema.items():
        if _is_refused_keyword(name, value):
            refused_keywords.append(f"{name}: {value}")
        elif name in _SCHEMA_KEYWORDS:
            translated_schema[name] = _move_refused_keywords(value)
        elif name in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            # Claude refuses ``oneOf``. Alternatives seldom overlap, so ``anyOf`` means the same.
            keyword = "anyOf" if name == "oneOf" and "anyOf" not in schema else name
            translated_schema[keyword] = list(map(_move_refused_keywords, value))
        elif name in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            translated_schema[name] = {
                key: _move_refused_keywords(member) for key, member in value.items()
            }
        else:
            translated_schema[name] = value
    if refused_keywords:
        descriptions = (translated_schema.get("description"), f"{{{', '.join(refused_keywords)}}}")
        translated_schema["description"] = "\n\n".join(
            str(description) for description in descriptions if description
        )
    return translated_schema


def _is_refused_keyword(keyword: str, value: Any) -> bool:
    match keyword:
        case "minItems":
            return value not in (0, 1)
        case "format":
            return value not in _ACCEPTED_FORMATS
        case "pattern":
            return isinstance(value, str) and _REFUSED_PATTERN.search(value) is not None
        case _:
            return keyword in _REFUSED_KEYWORDS


def _iterate_object_schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield ``schema`` and all schemas inside it that describe JSON objects."""
    if isinstance(schema, Mapping):
        schema_type = schema.get("type")
        if schema_type == "object" or (isinstance(schema_type, list) and "object" in schema_type):
            yield schema
        for subschema in schema.values():
            yield from _iterate_object_schemas(subschema)
    elif isinstance(schema, list):
        for subschema in schema:
            yield from _iterate_object_schemas(subschema)


def _is_closed(schema: Mapping[str, Any]) -> bool:
    return schema.get("additionalProperties") is False
