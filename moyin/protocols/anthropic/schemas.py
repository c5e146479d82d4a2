"""JSON schemas of answers, as Claude takes them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moyin.errors import UnsupportedFeature

__all__ = ["closed"]


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema``, whose objects hold no other members than those that it names: Claude refuses
    others, which is what a schema allows that says nothing. What Anthropic's SDK knows that Claude
    does not check goes into descriptions then. One that is closed already stays as it is.

    Raises:
        UnsupportedFeature: an object names no members, so that closed it could only be empty, or
            the SDK does not understand the schema. Another back end may.
    """
    objects = list(_objects(schema))
    if all(map(_is_closed, objects)):
        return dict(schema)
    if "definitions" in schema:
        # The SDK would keep what points there, and lose what it points at.
        raise _unsupported("Claude looks for a schema's parts in $defs, not in definitions")
    if not all(one.get("properties") or _is_closed(one) for one in objects):
        raise _unsupported("Claude can't answer with objects whose members are not named")
    # Here, because it takes a second, which whoever only translates need not wait for.
    from anthropic import transform_schema

    try:
        return transform_schema(dict(schema))
    # It says no more than that it did not expect what it found.
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise _unsupported("Claude can't be bound to this JSON schema") from error


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


def _unsupported(message: str) -> UnsupportedFeature:
    return UnsupportedFeature(message, field="response_format")
