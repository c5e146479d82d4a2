"""Faults that the beginning of a stream shows for certain, before the client gets any of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.text.routing.answer_checks import REFUSED, find_fault, has_content, matches_type

__all__ = ["NO_FAULT", "check_start"]

NO_FAULT = ""
# Values of JSON by the character that they begin with, and words by their whole.
_VALUES: Mapping[str, Any] = {"{": {}, "[": [], '"': "", "-": 0, **dict.fromkeys("0123456789", 0)}
_WORDS: Mapping[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    # No JSON by the letter, but the parser that checks whole answers takes them.
    "NaN": 0,
    "Infinity": 0,
}


def check_start(seen: Transcript, constraints: ResponseConstraints) -> str | None:
    """Return the fault of an answer that has begun, in the words of `checks.find_fault`; `NO_FAULT` where
    none can be told any more; None while there is nothing to judge yet."""
    if not seen.is_complete:
        return NO_FAULT
    if seen.stop is not None:
        fault = find_fault(seen.answer(), constraints)
        return NO_FAULT if fault is None or fault == REFUSED else fault
    if any(name not in constraints.tools for name in seen.tools):
        return "tool_name"
    if seen.tools or seen.has_thinking or seen.is_refusal:
        return NO_FAULT
    text = seen.text.lstrip()
    if not has_content(text):
        # White space, or the marks of a chat template: what counts is still to come.
        return None
    return _json_fault(text, constraints) if constraints.json else NO_FAULT


def _json_fault(text: str, constraints: ResponseConstraints) -> str:
    """What is wrong with JSON that begins like ``text``."""
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
    """Whether a text that has begun like ``text`` may still be ``word``."""
    return word.startswith(text[: len(word)])
