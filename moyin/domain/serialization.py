"""Translates domain dataclasses to JSON and back with pydantic."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


# Adapters are slow to make. The cache has one per domain type.
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def encode(value: Any) -> bytes:
    """Encode a domain dataclass as JSON bytes."""
    return _adapter(type(value)).dump_json(value)


def decode(cls: type[T], data: bytes) -> T:
    """Decode a domain dataclass that `encode` wrote."""
    result: T = _adapter(cls).validate_json(data)
    return result


def to_plain(value: Any) -> Any:
    """Convert a domain dataclass to dicts and lists that JSON can hold."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_plain(cls: type[T], data: Any) -> T:
    """Convert the result of `to_plain` back to the domain dataclass."""
    result: T = _adapter(cls).validate_python(data)
    return result
