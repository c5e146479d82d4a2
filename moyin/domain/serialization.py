"""Domain dataclasses to JSON and back, by pydantic, so that they stay plain dataclasses."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


# Making an adapter is slow; there are as many as there are domain types.
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def encode(value: Any) -> bytes:
    """JSON bytes of a domain dataclass."""
    return _adapter(type(value)).dump_json(value)


def decode(cls: type[T], data: bytes) -> T:
    """The domain dataclass in ``data``, as `encode` wrote it."""
    result: T = _adapter(cls).validate_json(data)
    return result


def to_plain(value: Any) -> Any:
    """JSON-ready dicts and lists of a domain dataclass."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_plain(cls: type[T], data: Any) -> T:
    """The inverse of `to_plain`."""
    result: T = _adapter(cls).validate_python(data)
    return result
