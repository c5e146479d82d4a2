"""Parses JSON into frozen dataclasses, as their type annotations say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from moyin_client.errors import MoyinError

T = TypeVar("T")


def parse_json(body: bytes) -> Any:
    """Return the JSON in a response's body; raise MoyinError if it is not JSON."""
    try:
        return json.loads(body)
    except ValueError:
        raise MoyinError("the response is not JSON", code="malformed_response") from None


def parse(shape: type[T], value: Any, path: str = "") -> T:
    """Create an instance of the dataclass ``shape`` from the members of the JSON object ``value``.

    Members that the dataclass does not have are ignored, since later versions of Moyin may add
    some. A member that is missing or null gets the field's default, if there is one.

    Args:
        path: the path of the object in the response, for errors.

    Raises:
        MoyinError: a member is missing or has another type.
    """
    if not isinstance(value, dict):
        raise _new_error(path or "the body", "an object")
    dataclass: Any = shape
    hints, members = _read_hints(dataclass), {}
    for field in fields(dataclass):
        name, hint = field.name, hints[field.name]
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        member = value.get(name)
        if member is None and has_default:
            continue
        members[name] = _convert(hint, member, f"{path}.{name}" if path else name)
    return shape(**members)


@cache
def _read_hints(shape: type) -> Mapping[str, Any]:
    return get_type_hints(shape)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        [hint] = [kind for kind in get_args(hint) if kind is not NoneType]
        return None if value is None else _convert(hint, value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise _new_error(path, "a list")
        kind = get_args(hint)[0]
        return tuple(_convert(kind, item, f"{path}.{index}") for index, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _new_error(path, "an object")
        return value
    return _convert_value(hint, value, path)


def _convert_value(hint: type, value: Any, path: str) -> Any:
    if hint is datetime:
        try:
            return datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise _new_error(path, "a time in RFC 3339") from None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool, float):
        # Not isinstance, because True is an int.
        if type(value) is not hint:
            raise _new_error(path, f"of the type {hint.__name__}")
        return value
    return parse(hint, value, path)


def _new_error(path: str, expected: str) -> MoyinError:
    return MoyinError(
        f"the response is malformed: {path} is not {expected}", code="malformed_response"
    )
