"""Resolves references from a step of a job to the outputs of earlier steps.

A string in a step's payload may contain ``${steps.<index>.<path>}``, where ``path`` is a path in
the earlier step's output, such as ``text``, ``artifacts.0`` or ``body.choices.0.message.content``.
``artifacts.0`` is a reference to a file, ``artifact:<id>``, which graphs and requests of Moyin accept;
``artifacts.0.id`` is the bare id, and ``artifacts.0.url`` the path at which the gateway serves the file.
A string that consists of one reference is replaced by the value, with its type; within a longer
string, the value is converted to text. ``$${`` is a literal ``${``. ``${steps.0.text:string}``
requires a type: ``string``, ``integer``, ``number``, ``boolean`` or ``artifact``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from moyin.errors import InvalidRequest

_REFERENCE = re.compile(
    r"(?<!\$)\$\{steps\.(\d+)((?:\.[A-Za-z0-9_-]+)+)"
    r"(?::(string|integer|number|boolean|artifact))?\}"
)
_ARTIFACT_PREFIX = "artifact:"
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "artifact": (str,),
}


class Reference(NamedTuple):
    """A reference in a payload.

    Attributes:
        text: the reference as it is written.
        step: the index of the step to which it refers.
        path: the path in that step's output.
        place: the path, within the payload, of the string that contains the reference.
    """

    text: str
    step: int
    path: tuple[str, ...]
    place: tuple[str, ...]


def resolve_references(payload: Any, outputs: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of a payload with its references to earlier ``outputs`` replaced by the values."""
    if isinstance(payload, str):
        return _resolve_text(payload, outputs)
    if isinstance(payload, Mapping):
        return {key: resolve_references(value, outputs) for key, value in payload.items()}
    if isinstance(payload, list | tuple):
        return [resolve_references(item, outputs) for item in payload]
    return payload


def check_references(payload: Any, index: int) -> None:
    """Check that step ``index`` refers to earlier steps only; raise InvalidRequest if not."""
    for reference in iterate_references(payload):
        if reference.step >= index:
            raise InvalidRequest(
                f"steps.{index}: {reference.text} must refer to an earlier step",
                field=f"steps.{index}",
            )


def iterate_references(payload: Any) -> Iterator[Reference]:
    """Yield all references in a payload."""
    for text, location in _iterate_strings(payload):
        for match in _REFERENCE.finditer(text):
            path = tuple(match[2][1:].split("."))
            yield Reference(match[0], _parse_index(match), path, location)


def has_references(payload: Any) -> bool:
    """Return True if ``payload`` contains a reference to the output of an earlier step."""
    return any(_REFERENCE.search(text) for text, _ in _iterate_strings(payload))


def escape_references(payload: Any) -> Any:
    """Return a copy of ``payload`` in which every ``${`` is escaped, so that it is plain text."""
    if isinstance(payload, str):
        return payload.replace("${", "$${")
    if isinstance(payload, Mapping):
        return {key: escape_references(value) for key, value in payload.items()}
    if isinstance(payload, list | tuple):
        return [escape_references(item) for item in payload]
    return payload


def _resolve_text(text: str, outputs: Sequence[Mapping[str, Any]]) -> Any:
    full_match = _REFERENCE.fullmatch(text)
    if full_match:
        return _look_up_value(full_match, outputs)
    resolved_text = _REFERENCE.sub(lambda match: str(_look_up_value(match, outputs)), text)
    return resolved_text.replace("$${", "${")


def _look_up_value(match: re.Match[str], outputs: Sequence[Mapping[str, Any]]) -> Any:
    index = _parse_index(match)
    if index >= len(outputs):
        raise InvalidRequest(
            f"{match[0]} must refer to an earlier step, not to step {index}", field=f"steps.{index}"
        )
    value: Any = outputs[index]
    for key in match[2][1:].split("."):
        try:
            value = _get_member(value, key)
        except (KeyError, IndexError, TypeError, ValueError):
            raise InvalidRequest(
                f"{match[0]}: the output of step {index} has no member {key!r}; refer to another one",
                field=f"steps.{index}",
            ) from None
    if match[3] is not None and not _has_type(match[3], value):
        raise InvalidRequest(
            f"{match[0]}: the value must be of type {match[3]}", field=f"steps.{index}"
        )
    return value


def _get_member(value: Any, key: str) -> Any:
    """Return an item of a list, a member of an object, or the id or path of an artifact."""
    if isinstance(value, list):
        return value[int(key)]
    if isinstance(value, str) and value.startswith(_ARTIFACT_PREFIX):
        artifact_id = value.removeprefix(_ARTIFACT_PREFIX)
        return {"id": artifact_id, "url": f"/artifacts/{artifact_id}"}[key]
    return value[key]


def _parse_index(match: re.Match[str]) -> int:
    """Return the index of the referenced step, or `sys.maxsize` for one of ten or more digits.

    Python cannot parse numbers with thousands of digits.
    """
    return int(match[1]) if len(match[1]) < 10 else sys.maxsize


def _has_type(kind: str, value: Any) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if isinstance(value, str) and value.startswith(_ARTIFACT_PREFIX) is not (kind == "artifact"):
        return False
    return isinstance(value, _TYPES[kind])


def _iterate_strings(
    payload: Any, location: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each string in a payload, and the string's path within the payload.

    Args:
        location: the path of ``payload`` itself, with which all yielded paths begin.
    """
    if isinstance(payload, str):
        yield payload, location
    elif isinstance(payload, Mapping):
        for key, value in payload.items():
            yield from _iterate_strings(value, (*location, str(key)))
    elif isinstance(payload, list | tuple):
        for index, item in enumerate(payload):
            yield from _iterate_strings(item, (*location, str(index)))
