"""Faults of an answer that can be found without judging it: its form, emptiness and repetition.

Only what is certainly wrong is a fault. JSON schemas come from clients, so they are read by a small
checker with a budget of steps, which knows the keywords that say what a value is; what it does not
know, such as regular expressions that could run for minutes, it lets pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from moyin.domain.chat import ChatResponse, StopReason, ToolUse
from moyin.domain.needs import ResponseConstraints

__all__ = ["REFUSED", "find_fault", "has_content", "is_truncated", "matches_schema", "matches_type"]

# A model that refuses did what it was told: no reason to ask another one.
REFUSED = "refused"
# A client that allows this many tokens expects an answer to end before them.
_AMPLE = 1_024
# Marks of chat templates, which a server that was set up wrongly lets through.
_MARKS = re.compile(r"(?:\s|<\|[a-z0-9_]{1,32}\|>|</?s>|<(?:start|end)_of_turn>|<eos>)+")

_MOST_STEPS = 2_000
_MOST_DEPTH = 32
_MOST_OPTIONS = 500
_LONGEST = 64 * 1024
_LARGEST_UNIT = 100
_SAMPLE = 12
_LEAST_REPEATED = 160
_LEAST_TIMES = 6
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": (int, float),
}


def find_fault(answer: ChatResponse, constraints: ResponseConstraints) -> str | None:
    """Return what is wrong with an answer, in a word; None where nothing is found.

    ``tool_name``, ``tool_arguments``, ``exclusion_of``, ``empty``, ``json``, ``schema``, ``repeating``.
    """
    calls = [part for part in answer.parts if isinstance(part, ToolUse)]
    for call in calls:
        if call.name not in constraints.tools:
            return "tool_name"
        if not isinstance(_parsed(call.arguments or "{}"), dict):
            return "tool_arguments"
    if calls:
        return None
    if answer.stop is StopReason.REFUSAL:
        return REFUSED
    text = answer.text.strip()
    if not has_content(text):
        # The client's own limit or stop sequence may have ended it.
        return "empty" if answer.stop is StopReason.END else None
    # The client's own limit may have cut JSON: no other model would do better under it.
    if constraints.json and answer.stop is not StopReason.MAX_TOKENS and len(text) <= _LONGEST:
        value = _parsed(text)
        if value is _NOT_JSON:
            return "json"
        if constraints.schema is not None and not matches_schema(value, constraints.schema):
            return "schema"
    return "repeating" if _repeats(text) else None


def is_truncated(answer: ChatResponse, max_tokens: int | None) -> bool:
    """Return whether an answer ran into a limit that should have been enough.

    Args:
        max_tokens: limit of the client; None: it set none.
    """
    return answer.stop is StopReason.MAX_TOKENS and (max_tokens is None or max_tokens >= _AMPLE)


def has_content(text: str) -> bool:
    """Return whether there is more in ``text`` than white space and marks of chat templates."""
    return bool(text) and _MARKS.fullmatch(text) is None


class _NotJson:
    """Stands for a text that is no JSON."""


_NOT_JSON = _NotJson()


def _parsed(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return _NOT_JSON


def _repeats(text: str) -> bool:
    """Whether the end is one piece again and again. Rules of tables and rows of dashes are not."""
    end = text[-_SAMPLE:]
    before = text.rfind(end, max(0, len(text) - _SAMPLE - _LARGEST_UNIT), len(text) - 1)
    if before < 0:
        return False
    unit = text[before - len(text) + len(end) :]
    times = max(_LEAST_TIMES, -(-_LEAST_REPEATED // len(unit)))
    return text.endswith(unit * times) and len(set(filter(str.isalpha, unit))) > 1


def matches_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return False where ``value`` certainly breaks ``schema``."""
    return _Checker(schema).matches(value, schema, 0)


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def matches(self, value: Any, schema: Any, depth: int) -> bool:
        self._steps += 1
        if schema is False:
            return False
        if not isinstance(schema, dict) or self._steps > _MOST_STEPS or depth > _MOST_DEPTH:
            return True
        if isinstance(reference := schema.get("$ref"), str):
            return self.matches(value, self._resolved(reference), depth + 1)
        return (
            matches_type(value, schema.get("type"))
            and _is_allowed(value, schema)
            and self._fits_any(value, schema, depth)
            and self._fits_members(value, schema, depth)
        )

    def _resolved(self, reference: str) -> Any:
        """A part of the same schema; anything else is not looked up and lets all pass."""
        found: Any = self._root
        if not reference.startswith("#"):
            return True
        for name in filter(None, reference[1:].split("/")):
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return True
            found = found[name]
        return found

    def _fits_any(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        for keyword in ("anyOf", "oneOf"):
            options = schema.get(keyword)
            if (
                isinstance(options, list)
                and options
                and not any(self.matches(value, option, depth + 1) for option in options)
            ):
                return False
        parts = schema.get("allOf")
        return not isinstance(parts, list) or all(
            self.matches(value, part, depth + 1) for part in parts
        )

    def _fits_members(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        if isinstance(value, list):
            items = schema.get("items", True)
            return all(self.matches(item, items, depth + 1) for item in value[:_MOST_STEPS])
        if not isinstance(value, dict):
            return True
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        if isinstance(required, list) and any(
            isinstance(name, str) and name not in value for name in required
        ):
            return False
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        return all(
            self.matches(item, known.get(name, others), depth + 1) for name, item in value.items()
        )


def matches_type(value: Any, kinds: Any) -> bool:
    """Return False where ``value`` is certainly none of a schema's types ``kinds``."""
    names = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(names, list):
        return True
    return any(_is(value, name) for name in names)


def _is(value: Any, kind: Any) -> bool:
    known = _TYPES.get(kind) if isinstance(kind, str) else None
    if known is None:
        return True
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, known)


def _is_allowed(value: Any, schema: Mapping[str, Any]) -> bool:
    allowed = schema.get("enum")
    if (
        isinstance(allowed, list)
        and len(allowed) <= _MOST_OPTIONS
        and not any(_same(value, one) for one in allowed)
    ):
        return False
    return "const" not in schema or _same(value, schema["const"])


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: true is not 1."""
    same: bool = one == other
    return same and isinstance(one, bool) is isinstance(other, bool)
