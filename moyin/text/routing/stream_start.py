"""Finds faults that the beginning of a stream shows, before the client gets any of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.text.routing.answer_checks import REFUSED, find_fault, has_content, matches_type

__all__ = ["NO_FAULT", "check_start"]

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


def check_start(transcript: Transcript, constraints: ResponseConstraints) -> str | None:
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
