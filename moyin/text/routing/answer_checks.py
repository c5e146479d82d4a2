"""Finds faults in an answer or in its beginning: wrong format, emptiness and repetition.

The quality of the content is not judged. A fault is reported only if it is certain. JSON schemas
come from clients and may be expensive, so a check stops after a limited number of steps. It ignores
some keywords, such as ``pattern``, because a regular expression could run for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from moyin.domain.chat import ChatResponse, StopReason, ToolUse
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript

# The fault of an answer in which the model refuses to answer. It never causes a rescue.
REFUSED = "refused"
# An answer should end within this many tokens, so a limit above it should not have cut it off.
_SUFFICIENT_TOKENS = 1_024
# Control tokens of chat templates. A misconfigured server sends them as text.
_TEMPLATE_TOKENS = re.compile(r"(?:\s|<\|[a-z0-9_]{1,32}\|>|</?s>|<(?:start|end)_of_turn>|<eos>)+")

_MAX_STEPS = 2_000
_MAX_DEPTH = 32
_MAX_ENUM_VALUES = 500
_MAX_JSON_LENGTH = 64 * 1024
_MAX_REPEATED_UNIT = 100
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
# A sample JSON value of each type, by the first character of its text or by its whole word.
_VALUE_BY_FIRST_CHARACTER: Mapping[str, Any] = {
    "{": {},
    "[": [],
    '"': "",
    "-": 0,
    **dict.fromkeys("0123456789", 0),
}
_VALUE_BY_WORD: Mapping[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    # These words are not valid JSON, but the parser that checks whole answers accepts them.
    "NaN": 0,
    "Infinity": 0,
}


def find_fault(answer: ChatResponse, constraints: ResponseConstraints) -> str | None:
    """Return the first fault that is found in an answer, or None.

    Returns:
        One of ``tool_name``, ``tool_arguments``, ``refused``, ``empty``, ``json``, ``schema`` and
        ``repeating``.
    """
    tool_calls = [part for part in answer.parts if isinstance(part, ToolUse)]
    for call in tool_calls:
        if call.name not in constraints.tools:
            return "tool_name"
        if not isinstance(_parse_json(call.arguments or "{}"), dict):
            return "tool_arguments"
    if tool_calls:
        return None
    if answer.stop is StopReason.REFUSAL:
        return REFUSED
    text = answer.text.strip()
    if not has_content(text):
        # With another stop reason, the client's own limit or stop sequence ended the answer.
        return "empty" if answer.stop is StopReason.END else None
    # If the client's token limit cut off the JSON, another model would reach that limit too.
    if (
        constraints.json
        and answer.stop is not StopReason.MAX_TOKENS
        and len(text) <= _MAX_JSON_LENGTH
    ):
        value = _parse_json(text)
        if value is _NOT_JSON:
            return "json"
        if constraints.schema is not None and not matches_schema(value, constraints.schema):
            return "schema"
    return "repeating" if _repeats_itself(text) else None


def is_truncated(answer: ChatResponse, max_tokens: int | None) -> bool:
    """Return True if a token limit cut off an answer, unless the client itself set a small limit.

    ``max_tokens`` is the client's limit; None if the client set none.
    """
    return answer.stop is StopReason.MAX_TOKENS and (
        max_tokens is None or max_tokens >= _SUFFICIENT_TOKENS
    )


def has_content(text: str) -> bool:
    """Return True if ``text`` is more than white space and control tokens of chat templates."""
    return bool(text) and _TEMPLATE_TOKENS.fullmatch(text) is None


# The result of parsing a text that is not JSON.
_NOT_JSON = object()


def _parse_json(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return _NOT_JSON


def _repeats_itself(text: str) -> bool:
    """Return True if the text ends in many repetitions of the same characters.

    The characters must include two different letters: a row of dashes is no fault.
    """
    text_end = text[-_SAMPLE_LENGTH:]
    previous_start = text.rfind(
        text_end, max(0, len(text) - _SAMPLE_LENGTH - _MAX_REPEATED_UNIT), len(text) - 1
    )
    if previous_start < 0:
        return False
    unit = text[previous_start - len(text) + len(text_end) :]
    repetition_count = max(_MIN_REPETITIONS, -(-_MIN_REPEATED_LENGTH // len(unit)))
    return text.endswith(unit * repetition_count) and len(set(filter(str.isalpha, unit))) > 1


def matches_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return False if ``value`` certainly violates ``schema``, else True."""
    return _SchemaChecker(schema).matches_subschema(value, schema, 0)


class _SchemaChecker:
    """Checks one value against a schema; after the maximum number of steps it accepts the rest."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def matches_subschema(self, value: Any, schema: Any, depth: int) -> bool:
        self._steps += 1
        if schema is False:
            return False
        if not isinstance(schema, dict) or self._steps > _MAX_STEPS or depth > _MAX_DEPTH:
            return True
        if isinstance(reference := schema.get("$ref"), str):
            return self.matches_subschema(value, self._resolve_reference(reference), depth + 1)
        return (
            matches_type(value, schema.get("type"))
            and _matches_enum(value, schema)
            and self._matches_combinations(value, schema, depth)
            and self._matches_members(value, schema, depth)
        )

    def _resolve_reference(self, reference: str) -> Any:
        """Return the part of the schema to which a ``$ref`` points.

        If there is no such part, return the schema ``True``, which accepts every value.
        """
        subschema: Any = self._root
        if not reference.startswith("#"):
            return True
        for name in filter(None, reference[1:].split("/")):
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(subschema, dict) or name not in subschema:
                return True
            subschema = subschema[name]
        return subschema

    def _matches_combinations(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        for keyword in ("anyOf", "oneOf"):
            options = schema.get(keyword)
            if (
                isinstance(options, list)
                and options
                and not any(self.matches_subschema(value, option, depth + 1) for option in options)
            ):
                return False
        subschemas = schema.get("allOf")
        return not isinstance(subschemas, list) or all(
            self.matches_subschema(value, subschema, depth + 1) for subschema in subschemas
        )

    def _matches_members(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        if isinstance(value, list):
            item_schema = schema.get("items", True)
            return all(
                self.matches_subschema(item, item_schema, depth + 1) for item in value[:_MAX_STEPS]
            )
        if not isinstance(value, dict):
            return True
        properties = schema.get("properties")
        known_schemas = properties if isinstance(properties, dict) else {}
        required_names = schema.get("required")
        if isinstance(required_names, list) and any(
            isinstance(name, str) and name not in value for name in required_names
        ):
            return False
        other_schema = (
            True if "patternProperties" in schema else schema.get("additionalProperties", True)
        )
        return all(
            self.matches_subschema(item, known_schemas.get(name, other_schema), depth + 1)
            for name, item in value.items()
        )


def matches_type(value: Any, types: Any) -> bool:
    """Return True if ``value`` has one of the JSON schema ``types``."""
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, list):
        return True
    return any(_has_type(value, name) for name in names)


def _has_type(value: Any, type_name: Any) -> bool:
    python_types = _TYPES.get(type_name) if isinstance(type_name, str) else None
    if python_types is None:
        return True
    if isinstance(value, bool):
        return bool(type_name == "boolean")
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, python_types)


def _matches_enum(value: Any, schema: Mapping[str, Any]) -> bool:
    allowed_values = schema.get("enum")
    if (
        isinstance(allowed_values, list)
        and len(allowed_values) <= _MAX_ENUM_VALUES
        and not any(_are_equal_in_json(value, option) for option in allowed_values)
    ):
        return False
    return "const" not in schema or _are_equal_in_json(value, schema["const"])


def _are_equal_in_json(left_value: Any, right_value: Any) -> bool:
    """Return True if two JSON values are equal; unlike in Python, true does not equal 1."""
    is_equal: bool = left_value == right_value
    return is_equal and isinstance(left_value, bool) is isinstance(right_value, bool)


def find_start_fault(transcript: Transcript, constraints: ResponseConstraints) -> str | None:
    """Return the fault of an answer whose stream has begun, before the client receives any of it.

    Returns:
        A fault as in `find_fault`; `NO_FAULT` if the beginning shows none; None if too little of
        the answer has arrived for a check.
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
        return None
    return _find_json_start_fault(text, constraints) if constraints.json else NO_FAULT


def _find_json_start_fault(text: str, constraints: ResponseConstraints) -> str:
    """Return the fault of an answer in JSON that begins with ``text``, or `NO_FAULT`."""
    if text[0] in _VALUE_BY_FIRST_CHARACTER:
        value = _VALUE_BY_FIRST_CHARACTER[text[0]]
    else:
        possible_words = [word for word in _VALUE_BY_WORD if _can_become(text, word)]
        if not possible_words:
            return "json"
        value = _VALUE_BY_WORD[possible_words[0]]
    schema = constraints.schema
    if schema is None or "$ref" in schema or matches_type(value, schema.get("type")):
        return NO_FAULT
    return "schema"


def _can_become(text: str, word: str) -> bool:
    """Return True if ``text`` begins with ``word``, or is itself the beginning of ``word``."""
    return word.startswith(text[: len(word)])
