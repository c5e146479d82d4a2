"""Replaces patterns and alternatives in texts, as ComfyUI's editor does when it queues a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

# Braces within more braces stay as they are.
MAX_DEPTH = 20
_MAX_REPLACED = 1_000
_PATTERN = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy")
_FORBIDDEN_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_ESCAPED = re.compile(r"\\([{}|])")


def replace_patterns(text: str, now: datetime, find_value: Callable[[str, str], str | None]) -> str:
    """Replace ``%date:yyyy-MM-dd%`` and ``%<node>.<widget>%`` in the name of an output file.

    Other patterns, such as ``%width%``, stay: ComfyUI replaces them.

    Args:
        find_value: returns the value of a node's widget, or None if there is no such widget.
    """
    if len(text) > _MAX_REPLACED:
        return text

    def replace_match(match: re.Match[str]) -> str:
        node, dot, widget = match[1].partition(".")
        if not dot:
            if not node.startswith("date:"):
                return match[0]
            return _DATE.sub(lambda part: _format_part(part[0], now), node.removeprefix("date:"))
        value = find_value(node, widget)
        if value is None:
            return match[0]
        return _FORBIDDEN_IN_NAMES.sub("_", value[:_MAX_REPLACED])

    return _PATTERN.sub(replace_match, text)


def choose_alternatives(text: str, choose_alternative: Callable[[Sequence[str]], str]) -> str:
    r"""Remove comments, and replace each ``{a|b}`` by one alternative; ``\{`` stays a brace."""
    return _choose_in_text(_remove_comments(text), choose_alternative, 0)


def _format_part(date_part: str, now: datetime) -> str:
    year = str(now.year)
    if date_part[0] == "y":
        return year if len(date_part) == 4 else year[2:]
    values = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}
    return str(values[date_part[0]]).zfill(len(date_part))


def _remove_comments(text: str) -> str:
    """Remove the comments, ``// …`` and ``/* … */``, from a text."""
    parts: list[str] = []
    position = 0
    while (slash := text.find("/", position)) >= 0:
        kind = text[slash : slash + 2]
        end = -1
        if kind == "//":
            line_end = text.find("\n", slash)
            end = len(text) if line_end < 0 else line_end
        elif kind == "/*":
            close = text.find("*/", slash + 2)
            if close < 0:
                # No later ``/*`` is closed either, so only comments to the end of a line remain.
                head, tail = text[position:slash], text[slash:]
                return "".join(parts) + head + re.sub(r"//.*", "", tail)
            end = close + 2
        parts.append(text[position : slash + 1] if end < 0 else text[position:slash])
        position = slash + 1 if end < 0 else end
    return "".join(parts) + text[position:]


def _choose_in_text(
    text: str, choose_alternative: Callable[[Sequence[str]], str], depth: int
) -> str:
    parts: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\":
            parts.append(text[position : position + 2])
            position += 2
        elif char == "{" and depth < MAX_DEPTH:
            alternatives, position = _read_alternatives(text, position + 1)
            parts.append(
                _choose_in_text(choose_alternative(alternatives), choose_alternative, depth + 1)
            )
        else:
            parts.append(char)
            position += 1
    return _ESCAPED.sub(r"\1", "".join(parts))


def _read_alternatives(text: str, position: int) -> tuple[list[str], int]:
    """Return the alternatives in the block that begins at ``position``, and the position after it."""
    alternatives, depth, start = [], 0, position
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            if depth == 0:
                break
            depth -= 1
        elif char == "|" and depth == 0:
            alternatives.append(text[start:position])
            start = position + 1
        position += 1
    end = min(position, len(text))
    return [*alternatives, text[start:end]], end + 1
