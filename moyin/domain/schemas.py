"""Bounds on JSON schemas that a server turns into a grammar.

llama.cpp, and Ollama with it, holds an answer to a schema by a grammar. What that costs grows with
what may follow at one place of the answer, and blocks the server for everybody: an enum of 4,000
values for half a minute, the pattern ``((((a?){9}){9}){9}){9}`` for good. So schemas are weighed first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from moyin.errors import SchemaTooLarge

__all__ = ["SchemaBounds", "check_schemas"]

# Keywords that hold schemas: one, several, or several by name.
_ONE = frozenset({"additionalProperties", "contains", "items", "not", "propertyNames"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_HOLDING = _ONE | _SEVERAL | _NAMED
_CHOICES = ("anyOf", "oneOf", "allOf")
# Keywords of which a schema without any can't be dear.
_WEIGHED = frozenset(
    {"$ref", "const", "enum", "pattern", "patternProperties", "properties", *_CHOICES}
)
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
# A repeated character or class costs as much as so many characters do.
_CHEAP_REPEATS = 16
_LEVELS = "the levels of its JSON schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaBounds:
    """What the schemas of one request may hold together, and at one place.

    Attributes:
        bytes: as JSON.
        depth: of schemas within each other.
        nodes: schemas, those within others counted.
        properties: of one object, those of all its ``allOf`` counted.
        values: of all enums.
        characters: of all enums' values.
        alternatives: that may begin at one place: an enum's values, the members of ``anyOf``,
            references followed.
        pattern: characters of one pattern.
        repeats: what a pattern comes to when its repetitions are written out.
        patterns: the same, of all of them.
    """

    bytes: int = 262_144
    depth: int = 32
    nodes: int = 4_000
    properties: int = 256
    values: int = 400
    characters: int = 5_000
    alternatives: int = 200
    pattern: int = 256
    repeats: int = 16
    patterns: int = 160


_BOUNDS = SchemaBounds()


def check_schemas(schemas: Iterable[tuple[str, Any]], bounds: SchemaBounds = _BOUNDS) -> None:
    """Refuse what would take a server too long.

    Args:
        schemas: each with the request's field that holds it.

    Raises:
        SchemaTooLarge: naming the field and the bound.
    """
    scale: _Scale | None = None
    for field, schema in schemas:
        scale = scale or _Scale(bounds)
        _Schema(field, schema, scale).weigh()


class _Scale:
    """Adds up what a request's schemas hold."""

    def __init__(self, bounds: SchemaBounds) -> None:
        self.bounds = bounds
        self._sums: dict[str, int] = {}

    def add(self, field: str, bound: str, amount: int, of: str) -> None:
        total = self._sums[bound] = self._sums.get(bound, 0) + amount
        self.check(field, bound, total, of)

    def check(self, field: str, bound: str, amount: int, of: str) -> None:
        limit = getattr(self.bounds, bound)
        if amount > limit:
            raise SchemaTooLarge(
                f"{field}: {of} are more than the {limit:,} that a server of ours takes",
                field=field,
                details={"bound": bound, "limit": limit},
            )


class _Schema:
    """One schema with the references within it."""

    def __init__(self, field: str, root: Any, scale: _Scale) -> None:
        self._field = field
        self._root = root
        self._scale = scale
        self._spreads: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def weigh(self) -> None:
        field, scale = self._field, self._scale
        scale.add(field, "bytes", len(to_json(self._root)), "the bytes of its JSON schemas")
        parts, depth = _parts(self._root, scale.bounds)
        scale.check(field, "depth", depth, _LEVELS)
        scale.add(field, "nodes", len(parts), "the parts of its JSON schemas")
        for part in parts:
            if _WEIGHED.isdisjoint(part):
                continue
            self._weigh_values(part)
            self._weigh_pattern(part.get("pattern"))
            for pattern in _names(part.get("patternProperties")):
                self._weigh_pattern(pattern)
            self._spread(part)

    def _weigh_values(self, part: Mapping[str, Any]) -> None:
        field, scale = self._field, self._scale
        values = part.get("enum")
        if isinstance(values, list):
            scale.add(field, "values", len(values), "the enum values of its JSON schemas")
            size = sum(map(_length, values))
            scale.add(field, "characters", size, "the characters of its enum values")
        if "const" in part:
            scale.add(
                field, "characters", _length(part["const"]), "the characters of its constants"
            )

    def _weigh_pattern(self, pattern: Any) -> None:
        if not isinstance(pattern, str):
            return
        field, scale = self._field, self._scale
        scale.check(field, "pattern", len(pattern), "the characters of a pattern")
        size = _written_out(pattern)
        scale.check(field, "repeats", size, "a pattern's repetitions, written out,")
        scale.add(field, "patterns", size, "the repetitions of its patterns, written out,")

    def _spread(self, part: Any) -> tuple[int, int]:
        """How many alternatives may begin where ``part`` stands, and how many properties the
        object there has, references followed."""
        if not isinstance(part, Mapping):
            return 1, 0
        key = id(part)
        known = self._spreads.get(key)
        if known is not None:
            return known
        if key in self._open:
            raise SchemaTooLarge(
                f"{self._field}: the JSON schema refers to itself without anything between",
                field=self._field,
                details={"bound": "alternatives", "limit": self._scale.bounds.alternatives},
            )
        self._open.add(key)
        self._scale.check(self._field, "depth", len(self._open), _LEVELS)
        alternatives, properties = 0, len(_names(part.get("properties")))
        for name in ("enum", "type"):
            if isinstance(part.get(name), list):
                alternatives = max(alternatives, len(part[name]))
        if isinstance(part.get("$ref"), str):
            alternatives, properties = _sum((alternatives, properties), self._target(part["$ref"]))
        for name in _CHOICES:
            members = part.get(name)
            for member in members if isinstance(members, list) else ():
                alternatives, properties = _sum((alternatives, properties), self._spread(member))
        self._open.discard(key)
        field, scale = self._field, self._scale
        scale.check(field, "alternatives", alternatives, "the alternatives at one place")
        scale.check(field, "properties", properties, "the properties of one object")
        found = self._spreads[key] = (max(alternatives, 1), properties)
        return found

    def _target(self, reference: str) -> tuple[int, int]:
        if not reference.startswith("#"):
            # Of another document, which no server fetches.
            return 1, 0
        value = self._root
        for name in reference[1:].strip("/").split("/") if reference.strip("#/") else ():
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                return 1, 0
        return self._spread(value)


def _sum(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]


def _names(named: Any) -> tuple[str, ...]:
    return tuple(named) if isinstance(named, Mapping) else ()


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(to_json(value))


def _parts(root: Any, bounds: SchemaBounds) -> tuple[list[Mapping[str, Any]], int]:
    """The schemas in ``root``, itself among them, and how deep they go. Ends one beyond a bound."""
    parts: list[Mapping[str, Any]] = []
    level, depth = [root], 0
    while level and depth <= bounds.depth and len(parts) <= bounds.nodes:
        depth += 1
        below: list[Any] = []
        for part in level:
            if not isinstance(part, Mapping):
                continue
            parts.append(part)
            for name in _HOLDING.intersection(part):
                value = part[name]
                if isinstance(value, list):
                    below.extend(value)
                elif isinstance(value, Mapping):
                    below.extend(value.values() if name in _NAMED else (value,))
        level = below
    return parts, depth


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a part of a pattern comes to.

    Attributes:
        repeats: in it, where it stands once.
        within: the same for each time that it is repeated: how long a repeated character's run is
            makes no difference until the whole of it may come again.
        choices: alternatives in it.
    """

    repeats: int = 0
    within: int = 0
    choices: int = 0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(
            self.repeats + other.repeats,
            self.within + other.within,
            self.choices + other.choices,
        )


def _written_out(pattern: str) -> int:
    """How many repetitions a pattern comes to: ``(a?b{2}){3}`` repeats its group of two three
    times, and so are a repeated group's alternatives."""
    # Of the groups that are open, outermost first; then of what came last, which a repetition may
    # follow: None of a character or a class.
    groups: list[_Cost] = [_Cost()]
    last: _Cost | None = None
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        repeat = _REPEAT.match(pattern, at) if sign == "{" else None
        if sign == "(":
            groups.append(_Cost())
        elif sign == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif sign == "|":
            groups[-1] += _Cost(choices=1)
        elif repeat is not None or sign in "?*+":
            more = _repeated(last, *_times(sign, repeat))
            groups[-1] += more
            last = (last or _Cost()) + more
        else:
            last = None
        at = repeat.end() if repeat is not None else _after(pattern, at)
    return sum(group.repeats for group in groups)


def _times(sign: str, repeat: re.Match[str] | None) -> tuple[int, int]:
    """How often at least and at most; a loop counts as twice: it leads to where it began."""
    if repeat is None:
        return int(sign == "+"), 1 if sign == "?" else 2
    least = int(repeat[1] or 0)
    return least, max(least, int(repeat[2] or 0))


def _repeated(last: _Cost | None, least: int, most: int) -> _Cost:
    """What a repetition adds to what it repeats."""
    if last is None:
        return _Cost(repeats=-(-most // _CHEAP_REPEATS), within=max(most - least, 1))
    more = (last.within + last.choices) * max(most - 1, 0) + last.choices + most - least
    return _Cost(repeats=more, within=more)


def _after(pattern: str, at: int) -> int:
    """The place after what stands at ``at``: an escaped character, a class, or a character."""
    if pattern[at] == "[":
        at += 1
        while at < len(pattern) and pattern[at] != "]":
            at += 2 if pattern[at] == "\\" else 1
        return at + 1
    return at + (2 if pattern[at] == "\\" else 1)
