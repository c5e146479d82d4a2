"""Encodes large responses in parts, and joins the parts to JSON lists and objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import to_json


def encode_json(value: Any) -> bytes:
    """Return a value as JSON; numbers that JSON does not have become null."""
    return to_json(value, inf_nan_mode="null")


def join_items(items: Iterable[bytes]) -> bytes:
    """Return a JSON list of encoded items."""
    return b"[" + b",".join(items) + b"]"


def join_members(members: Mapping[str, bytes]) -> bytes:
    """Return a JSON object of encoded members."""
    return b"{" + b",".join(to_json(name) + b":" + value for name, value in members.items()) + b"}"
