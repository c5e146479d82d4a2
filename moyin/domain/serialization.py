"""Converts domain dataclasses to JSON and back with pydantic."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")
# Adapters are slow to make, so one per domain type is cached.
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _get_adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def encode(value: Any) -> bytes:
    return _get_adapter(type(value)).dump_json(value)


def decode(cls: type[T], data: bytes) -> T:
    """Decode the JSON bytes of a domain dataclass of the type ``cls``."""
    result: T = _get_adapter(cls).validate_json(data)
    return result


def to_plain(value: Any) -> Any:
    """Convert a domain dataclass to the dicts, lists and scalars of JSON."""
    return _get_adapter(type(value)).dump_python(value, mode="json")


def from_plain(cls: type[T], data: Any) -> T:
    """Convert the dicts, lists and scalars of JSON to a domain dataclass of the type ``cls``."""
    result: T = _get_adapter(cls).validate_python(data)
    return result
