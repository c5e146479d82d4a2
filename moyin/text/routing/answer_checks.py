"""Finds faults of an answer without judging it: wrong format, emptiness and repetition.

Only certain mistakes are faults. JSON schemas come from clients, so a small checker with a budget
of steps reads them. Keywords that it does not know pass, such as regular expressions, which could
run for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from moyin.domain.chat import ChatResponse, StopReason, ToolUse
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript

__all__ = [
    "NO_FAULT",
    "REFUSED",
    "find_fault",
    "find_start_fault",
    "is_truncated",
    "matches_schema",
]

# A refusal is intended behaviour, so no other model is called.
REFUSED = "refused"
# An answer is expected to end within this many tokens.
_AMPLE_TOKENS = 1_024
# Marks of chat templates, which a misconfigured server lets through.
_TEMPLATE_MARKS = re.compile(r"(?:\s|<\|[a-z0-9_]{1,32}\|>|</?s>|<(?:start|end)_of_turn>|<eos>)+")

_MAX_STEPS = 2_000
_MAX_DEPTH = 32
_MAX_OPTIONS = 500
_MAX_JSON_LENGTH = 64 * 1024
_MAX_UNIT = 100
_SAMPLE_LENGTH = 12
_MIN_REPEATED_LENGTH = 160
_MIN_REPETITIONS = 6
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": (int, float),
}

NO_FAULT = ""
# An example of each JSON value by its first character, and the literal words.
_VALUES: Mapping[str, Any] = {"{": {}, "[": [], '"': "", "-": 0, **dict.fromkeys("0123456789", 0)}
_WORDS: Mapping[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    # Not valid JSON, but the parser that checks whole answers accepts them.
    "NaN": 0,
    "Infinity": 0,
}


def find_fault(answer: ChatResponse, constraints: ResponseConstraints) -> str | None:
    """Return the fault of an answer in one word; None if none is found.

    One of ``tool_name``, ``tool_arguments``, ``refused``, ``empty``, ``json``, ``schema``,
    ``repeating``.
    """
    calls = [part for part in answer.parts if isinstance(part, ToolUse)]
    for call in calls:
        if call.name not in constraints.tools:
            return "tool_name"
        if not isinstance(_parse(call.arguments or "{}"), dict):
            return "tool_arguments"
    if calls:
        return None
    if answer.stop is StopReason.REFUSAL:
        return REFUSED
    text = answer.text.strip()
    if not has_content(text):
        # The client's own limit or stop sequence may have ended it.
        return "empty" if answer.stop is StopReason.END else None
    # The client's own limit may have cut the JSON; another model would hit it too.
    if (
        constraints.json
        and answer.stop is not StopReason.MAX_TOKENS
        and len(text) <= _MAX_JSON_LENGTH
    ):
        value = _parse(text)
        if value is _NOT_JSON:
            return "json"
        if constraints.schema is not None and not matches_schema(value, constraints.schema):
            return "schema"
    return "repeating" if _repeats_itself(text) else None


def is_truncated(answer: ChatResponse, max_tokens: int | None) -> bool:
    """Return whether an answer hit a token limit that should have been enough.

    Args:
        max_tokens: limit set by the client; None: it set none.
    """
    return answer.stop is StopReason.MAX_TOKENS and (
        max_tokens is None or max_tokens >= _AMPLE_TOKENS
    )


def has_content(text: str) -> bool:
    """Return whether ``text`` has more than white space and marks of chat templates."""
    return bool(text) and _TEMPLATE_MARKS.fullmatch(text) is None


class _NotJson:
    """Marks a text that is not JSON."""


_NOT_JSON = _NotJson()


def _parse(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return _NOT_JSON


def _repeats_itself(text: str) -> bool:
    """Return whether the text ends in one piece repeated over and over.

    Table rules and rows of dashes do not count.
    """
    end = text[-_SAMPLE_LENGTH:]
    before = text.rfind(end, max(0, len(text) - _SAMPLE_LENGTH - _MAX_UNIT), len(text) - 1)
    if before < 0:
        return False
    unit = text[before - len(text) + len(end) :]
    times = max(_MIN_REPETITIONS, -(-_MIN_REPEATED_LENGTH // len(unit)))
    return text.endswith(unit * times) and len(set(filter(str.isalpha, unit))) > 1


def matches_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return False if ``value`` certainly violates ``schema``."""
    return _SchemaChecker(schema).matches(value, schema, 0)


class _SchemaChecker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def matches(self, value: Any, schema: Any, depth: int) -> bool:
        self._steps += 1
        if schema is False:
            return False
        if not isinstance(schema, dict) or self._steps > _MAX_STEPS or depth > _MAX_DEPTH:
            return True
        if isinstance(reference := schema.get("$ref"), str):
            return self.matches(value, self._resolve(reference), depth + 1)
        return (
            matches_type(value, schema.get("type"))
            and _is_allowed(value, schema)
            and self._matches_combinations(value, schema, depth)
            and self._matches_members(value, schema, depth)
        )

    def _resolve(self, reference: str) -> Any:
        """Return the referenced part of the same schema; anything else is ignored and passes."""
        part: Any = self._root
        if not reference.startswith("#"):
            return True
        for name in filter(None, reference[1:].split("/")):
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(part, dict) or name not in part:
                return True
            part = part[name]
        return part

    def _matches_combinations(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
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

    def _matches_members(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        if isinstance(value, list):
            items = schema.get("items", True)
            return all(self.matches(item, items, depth + 1) for item in value[:_MAX_STEPS])
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
    """Return False if ``value`` certainly has none of the schema types ``kinds``."""
    names = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(names, list):
        return True
    return any(_is_of_type(value, name) for name in names)


def _is_of_type(value: Any, kind: Any) -> bool:
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
        and len(allowed) <= _MAX_OPTIONS
        and not any(_json_equal(value, option) for option in allowed)
    ):
        return False
    return "const" not in schema or _json_equal(value, schema["const"])


def _json_equal(option: Any, other: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    same: bool = option == other
    return same and isinstance(option, bool) is isinstance(other, bool)


def find_start_fault(transcript: Transcript, constraints: ResponseConstraints) -> str | None:
    """Return the fault of an answer that has begun, in the words of `answer_checks.find_fault`.

    Return `NO_FAULT` if none can be found any more, and None while there is nothing to check yet.
    """
    if not transcript.is_complete:
        return NO_FAULT
    if transcript.stop is not None:
        fault = find_fault(transcript.to_response(), constraints)
        return NO_FAULT if fault is None or fault == REFUSED else fault
    if any(name not in constraints.tools for name in transcript.tools):
        return "tool_name"
    if transcript.tools or transcript.has_thinking or transcript.is_refusal:
        return NO_FAULT
    text = transcript.text.lstrip()
    if not has_content(text):
        # Only white space or marks of a chat template so far.
        return None
    return _json_fault(text, constraints) if constraints.json else NO_FAULT


def _json_fault(text: str, constraints: ResponseConstraints) -> str:
    """Return the fault of JSON that begins with ``text``; `NO_FAULT` if there is none."""
    if text[0] in _VALUES:
        value = _VALUES[text[0]]
    else:
        words = [word for word in _WORDS if _may_become(text, word)]
        if not words:
            return "json"
        value = _WORDS[words[0]]
    schema = constraints.schema
    if schema is None or "$ref" in schema or matches_type(value, schema.get("type")):
        return NO_FAULT
    return "schema"


def _may_become(text: str, word: str) -> bool:
    """Return whether a text that begins with ``text`` may still become ``word``."""
    return word.startswith(text[: len(word)])
