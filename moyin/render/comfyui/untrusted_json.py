"""Parses the JSON that a ComfyUI process sends, in which a node may have written anything.

All responses and events of the process pass `parse_untrusted_json`. Its result can be processed
recursively, serialised by pydantic, Temporal and browsers, and stored as text in any database.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from moyin.errors import WorkerLost

_MIB = 1024 * 1024
# Matches from every quotation mark, also an unterminated string, so that the search is linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# Escapes that need a replacement: halves of surrogate pairs, and NUL, which PostgreSQL rejects.
_SUSPECT = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")
# A pair of surrogates or another valid escape is group 1; a lone surrogate or NUL is not.
_ESCAPE = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|\\u(?:[dD][89a-fA-F][0-9a-fA-F]{2}|0000)"
    rb"|(\\.)",
    re.DOTALL,
)
_REPLACEMENT = rb"\ufffd"
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_DEPTH_STEPS = {byte: 1 if byte in b"[{" else -1 for byte in _BRACKETS}


class MalformedResponse(WorkerLost):
    """Raised when ComfyUI sends what ComfyUI does not send, so its process must be replaced."""


class ResponseTooLarge(MalformedResponse):
    """Raised when a response has too many bytes, values or digits, as honest nodes may cause."""


class ResponseTooDeep(MalformedResponse):
    """Raised when a response is nested too deeply, as only the errors of a graph may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLimits:
    """The limits of one JSON text.

    Attributes:
        max_bytes: bytes of the text.
        max_values: objects, arrays, keys and other values. In memory a value takes at most some
            hundred bytes, but its text as few as two.
        max_depth: levels of nesting. Pydantic reads fewer than 200, of which the records and
            messages that contain these values need some.
        max_digits: consecutive digits of a number. Every integer of 300 digits is a finite float,
            and Python refuses to print those of more than 4,300.
    """

    max_bytes: int
    max_values: int
    max_depth: int = 100
    max_digits: int = 300


# Other responses are short, for example the list of node classes.
DEFAULT_LIMITS = JsonLimits(max_bytes=4 * _MIB, max_values=200_000)
# Errors of a graph list the choices of inputs, such as all model files.
GRAPH_LIMITS = JsonLimits(max_bytes=32 * _MIB, max_values=1_000_000)
# History entries are stored, and a client may request hundreds of them at once.
ENTRY_LIMITS = JsonLimits(max_bytes=8 * _MIB, max_values=500_000)
# The description of all nodes has megabytes.
GET_LIMITS = JsonLimits(max_bytes=32 * _MIB, max_values=2_000_000)
EVENT_LIMITS = JsonLimits(max_bytes=8 * _MIB, max_values=500_000)
FRAME_METADATA_LIMITS = JsonLimits(max_bytes=64 * 1024, max_values=1_000, max_depth=16)


def parse_untrusted_json(content: bytes, limits: JsonLimits, source: str) -> Any:
    """Parse JSON within the limits.

    Lone surrogates and NUL in texts become U+FFFD, and numbers that are not finite become None, as
    in JavaScript. Of equal keys in an object, the last counts.

    Args:
        source: what sent the JSON, for error messages, such as ``response to GET /queue``.

    Raises:
        MalformedResponse: the content is not JSON in UTF-8.
        ResponseTooDeep: the content is nested too deeply.
        ResponseTooLarge: the content exceeds another limit.
    """
    try:
        _check_limits(content, limits, source)
        text = _replace_escapes(content).decode()
        return json.loads(text, parse_constant=_drop_constant, parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(
            f"ComfyUI's {source} is not JSON in UTF-8; a custom node may have replaced the route"
        ) from error


def normalize_untrusted_json(content: bytes, limits: JsonLimits, source: str) -> bytes:
    """Return the JSON of the value that `parse_untrusted_json` returns, with the same errors."""
    return to_json(parse_untrusted_json(content, limits, source))


def require_object(value: Any, source: str) -> Mapping[str, Any]:
    """Return a parsed value if it is a JSON object; raise `MalformedResponse` otherwise."""
    if not isinstance(value, dict):
        raise MalformedResponse(f"ComfyUI's {source} is not a JSON object")
    return value


def _check_limits(content: bytes, limits: JsonLimits, source: str) -> None:
    """Check the limits before the content is parsed, because parsing already uses memory."""
    if len(content) > limits.max_bytes:
        raise make_size_error(limits, source)
    structure = _STRING.sub(b"0", content)
    separators = sum(structure.count(character) for character in (b",", b":", b"[", b"{"))
    if separators + 1 > limits.max_values:
        raise ResponseTooLarge(
            f"ComfyUI's {source} exceeds the limit of {limits.max_values:,} values"
        )
    brackets = structure.translate(None, _NO_BRACKETS)
    depth = max(accumulate(map(_DEPTH_STEPS.__getitem__, brackets)), default=0)
    if depth > limits.max_depth:
        raise ResponseTooDeep(
            f"ComfyUI's {source} exceeds the limit of {limits.max_depth} levels of nesting"
        )
    if re.search(rb"[0-9]{%d}" % (limits.max_digits + 1), structure):
        raise ResponseTooLarge(
            f"ComfyUI's {source} has a number that exceeds the limit of {limits.max_digits} digits"
        )


def make_size_error(limits: JsonLimits, source: str) -> ResponseTooLarge:
    return ResponseTooLarge(f"ComfyUI's {source} exceeds the limit of {limits.max_bytes:,} bytes")


def _replace_escapes(content: bytes) -> bytes:
    if _SUSPECT.search(content) is None:
        return content
    return _ESCAPE.sub(lambda match: match[1] or match[2] or _REPLACEMENT, content)


def _drop_constant(_name: str) -> None:
    return None


def _parse_float(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
