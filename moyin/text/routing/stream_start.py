"""Faults that the beginning of a stream shows for certain, before the client gets any of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.text.routing.answer_checks import REFUSED, fault_of, fits_type, says_something

__all__ = ["FINE", "verdict_of"]

FINE = ""
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


def verdict_of(seen: Transcript, form: ResponseConstraints) -> str | None:
    """Return the fault of an answer that has begun, in the words of `checks.fault_of`; `FINE` where
    none can be told any more; None while there is nothing to judge yet."""
    if not seen.is_complete:
        return FINE
    if seen.stop is not None:
        fault = fault_of(seen.answer(), form)
        return FINE if fault is None or fault == REFUSED else fault
    if any(name not in form.tools for name in seen.tools):
        return "tool_name"
    if seen.tools or seen.has_thinking or seen.is_refusal:
        return FINE
    text = seen.text.lstrip()
    if not says_something(text):
        # White space, or the marks of a chat template: what counts is still to come.
        return None
    return _json_fault(text, form) if form.json else FINE


def _json_fault(text: str, form: ResponseConstraints) -> str:
    """What is wrong with JSON that begins like ``text``."""
    if text[0] in _VALUES:
        value = _VALUES[text[0]]
    else:
        words = [word for word in _WORDS if _may_become(text, word)]
        if not words:
            return "json"
        value = _WORDS[words[0]]
    schema = form.schema
    if schema is None or "$ref" in schema or fits_type(value, schema.get("type")):
        return FINE
    return "schema"


def _may_become(text: str, word: str) -> bool:
    """Whether a text that has begun like ``text`` may still be ``word``."""
    return word.startswith(text[: len(word)])
