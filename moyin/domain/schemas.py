"""Limits the size of JSON schemas before a local model server compiles them to a grammar.

llama.cpp and Ollama use a grammar to make an answer match a schema. The cost of a grammar grows
with the alternatives at one place of the answer, and compiling one blocks the server for all
requests: an enum of 4,000 values takes half a minute, and the pattern ``((((a?){9}){9}){9}){9}``
never finishes compiling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from moyin.errors import SchemaTooLarge

# Keywords that hold one schema, a list of schemas, or schemas by name.
_ONE = frozenset({"additionalProperties", "contains", "items", "not", "propertyNames"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_HOLDING = _ONE | _SEVERAL | _NAMED
_CHOICES = ("anyOf", "oneOf", "allOf")
# A schema without any of these keywords is cheap.
_COSTLY = frozenset(
    {"$ref", "const", "enum", "pattern", "patternProperties", "properties", *_CHOICES}
)
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
# Repeating a single character or class this often costs as much as one other repetition.
_CHEAP_REPEATS = 16
_LEVELS = "the levels of its JSON schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaBounds:
    """The bounds on the JSON schemas in a request for a local model.

    Attributes:
        bytes: the maximum size of all schemas together in bytes, as JSON.
        depth: the maximum number of levels of nesting.
        nodes: the maximum number of schemas, nested ones included.
        properties: the maximum number of properties of one object, those of its ``allOf`` included.
        values: the maximum number of enum values in all schemas together.
        characters: the maximum number of characters of all enum values together.
        alternatives: the maximum number of alternatives at one place: the values of an enum
            and the members of ``anyOf``, with references resolved.
        pattern: the maximum number of characters of one regular expression.
        repeats: the maximum number of repetitions in one regular expression, after
            multiplication of nested ones.
        patterns: the maximum number of repetitions in all regular expressions together.
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
    """Raise SchemaTooLarge if a JSON schema in a request exceeds a bound.

    Args:
        schemas: pairs of the field of the request and the schema in this field.
    """
    totals: _Totals | None = None
    for field, schema in schemas:
        totals = totals or _Totals(bounds)
        _SchemaChecker(field, schema, totals).check()


def drop_expensive_patterns(schema: Any, bounds: SchemaBounds = _BOUNDS) -> Any:
    """Return a schema without those ``pattern`` members that exceed a bound by themselves.

    If there are none, the same object is returned. The schema may be any JSON value whose nesting
    the JSON parser accepts.
    """
    if isinstance(schema, list):
        items = [drop_expensive_patterns(item, bounds) for item in schema]
        is_unchanged = all(new is old for new, old in zip(items, schema, strict=True))
        return schema if is_unchanged else items
    if not isinstance(schema, Mapping):
        return schema
    members = {
        name: drop_expensive_patterns(value, bounds)
        for name, value in schema.items()
        if name != "pattern" or not isinstance(value, str) or _is_cheap(value, bounds)
    }
    is_unchanged = len(members) == len(schema) and all(
        members[name] is schema[name] for name in members
    )
    return schema if is_unchanged else members


def _is_cheap(pattern: str, bounds: SchemaBounds) -> bool:
    return len(pattern) <= bounds.pattern and _count_expanded_repeats(pattern) <= bounds.repeats


class _Totals:
    """Adds up the sizes of all schemas of a request and compares them with the bounds."""

    def __init__(self, bounds: SchemaBounds) -> None:
        self.bounds = bounds
        self._sums: dict[str, int] = {}

    def add(self, field: str, bound_name: str, amount: int, counted_noun: str) -> None:
        total = self._sums[bound_name] = self._sums.get(bound_name, 0) + amount
        self.check_limit(field, bound_name, total, counted_noun)

    def check_limit(self, field: str, bound_name: str, amount: int, counted_noun: str) -> None:
        limit = getattr(self.bounds, bound_name)
        if amount > limit:
            raise SchemaTooLarge(
                f"{field}: {counted_noun} exceed the limit of {limit:,} for a local model; simplify "
                "the schema",
                field=field,
                details={"bound": bound_name, "limit": limit},
            )


class _SchemaChecker:
    """Checks one schema of a request and resolves the ``$ref`` references in the schema."""

    def __init__(self, field: str, root: Any, totals: _Totals) -> None:
        self._field = field
        self._root = root
        self._totals = totals
        self._measured: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def check(self) -> None:
        field, totals = self._field, self._totals
        totals.add(field, "bytes", len(to_json(self._root)), "the bytes of its JSON schemas")
        schemas, depth = _collect_schemas(self._root, totals.bounds)
        totals.check_limit(field, "depth", depth, _LEVELS)
        totals.add(field, "nodes", len(schemas), "the parts of its JSON schemas")
        for schema in schemas:
            if _COSTLY.isdisjoint(schema):
                continue
            self._check_values(schema)
            self._check_pattern(schema.get("pattern"))
            for pattern in _list_names(schema.get("patternProperties")):
                self._check_pattern(pattern)
            self._measure_schema(schema)

    def _check_values(self, schema: Mapping[str, Any]) -> None:
        field, totals = self._field, self._totals
        values = schema.get("enum")
        if isinstance(values, list):
            totals.add(field, "values", len(values), "the enum values of its JSON schemas")
            character_count = sum(map(_count_characters, values))
            totals.add(field, "characters", character_count, "the characters of its enum values")
        if "const" in schema:
            totals.add(
                field,
                "characters",
                _count_characters(schema["const"]),
                "the characters of its constants",
            )

    def _check_pattern(self, pattern: Any) -> None:
        if not isinstance(pattern, str):
            return
        field, totals = self._field, self._totals
        totals.check_limit(field, "pattern", len(pattern), "the characters of a pattern")
        repeat_count = _count_expanded_repeats(pattern)
        totals.check_limit(field, "repeats", repeat_count, "the expanded repetitions of a pattern")
        totals.add(field, "patterns", repeat_count, "the expanded repetitions of its patterns")

    def _measure_schema(self, schema: Any) -> tuple[int, int]:
        """Return a schema's number of alternatives and of properties, with references resolved."""
        if not isinstance(schema, Mapping):
            return 1, 0
        key = id(schema)
        cached_measurement = self._measured.get(key)
        if cached_measurement is not None:
            return cached_measurement
        if key in self._open:
            raise SchemaTooLarge(
                f"{self._field}: the JSON schema must not refer directly to itself",
                field=self._field,
                details={"bound": "alternatives", "limit": self._totals.bounds.alternatives},
            )
        self._open.add(key)
        self._totals.check_limit(self._field, "depth", len(self._open), _LEVELS)
        alternatives, properties = 0, len(_list_names(schema.get("properties")))
        for name in ("enum", "type"):
            if isinstance(schema.get(name), list):
                alternatives = max(alternatives, len(schema[name]))
        if isinstance(schema.get("$ref"), str):
            alternatives, properties = _add_pairs(
                (alternatives, properties), self._measure_reference(schema["$ref"])
            )
        for name in _CHOICES:
            members = schema.get(name)
            for member in members if isinstance(members, list) else ():
                alternatives, properties = _add_pairs(
                    (alternatives, properties), self._measure_schema(member)
                )
        self._open.discard(key)
        field, totals = self._field, self._totals
        totals.check_limit(field, "alternatives", alternatives, "the alternatives at one place")
        totals.check_limit(field, "properties", properties, "the properties of one object")
        measurement = self._measured[key] = (max(alternatives, 1), properties)
        return measurement

    def _measure_reference(self, reference: str) -> tuple[int, int]:
        if not reference.startswith("#"):
            # References to other documents are never fetched.
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
        return self._measure_schema(value)


def _add_pairs(pair: tuple[int, int], other_pair: tuple[int, int]) -> tuple[int, int]:
    return pair[0] + other_pair[0], pair[1] + other_pair[1]


def _list_names(members: Any) -> tuple[str, ...]:
    return tuple(members) if isinstance(members, Mapping) else ()


def _count_characters(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(to_json(value))


def _collect_schemas(root: Any, bounds: SchemaBounds) -> tuple[list[Mapping[str, Any]], int]:
    """Return ``root`` and all schemas in it, and the nesting depth; stop if a bound is exceeded."""
    schemas: list[Mapping[str, Any]] = []
    level, depth = [root], 0
    while level and depth <= bounds.depth and len(schemas) <= bounds.nodes:
        depth += 1
        next_level: list[Any] = []
        for schema in level:
            if not isinstance(schema, Mapping):
                continue
            schemas.append(schema)
            for name in _HOLDING.intersection(schema):
                value = schema[name]
                if isinstance(value, list):
                    next_level.extend(value)
                elif isinstance(value, Mapping):
                    next_level.extend(value.values() if name in _NAMED else (value,))
        level = next_level
    return schemas, depth


@dataclass(frozen=True, slots=True)
class _PatternCost:
    """The cost of compiling a part of a regular expression, in repetitions.

    Attributes:
        repeats: the cost of the part, if the part itself is not repeated. A long run of one
            character, such as ``a{99}``, counts only in part, because such a run is cheap.
        nested: the cost that each further repetition of the whole part adds.
        choices: the number of alternatives in the part.
    """

    repeats: int = 0
    nested: int = 0
    choices: int = 0

    def __add__(self, other: _PatternCost) -> _PatternCost:
        return _PatternCost(
            self.repeats + other.repeats,
            self.nested + other.nested,
            self.choices + other.choices,
        )


def _count_expanded_repeats(pattern: str) -> int:
    """Return the number of repetitions in a regular expression, with nested ones multiplied.

    In ``(a?b{2}){3}`` the two repetitions of the group count three times. Alternatives in a
    repeated group are counted in the same way.
    """
    # The costs of the open groups, outermost first. `last_cost` is the cost of the last element, which a
    # repetition may follow: None for a character or a class.
    groups: list[_PatternCost] = [_PatternCost()]
    last_cost: _PatternCost | None = None
    position = 0
    while position < len(pattern):
        character = pattern[position]
        repeat = _REPEAT.match(pattern, position) if character == "{" else None
        if character == "(":
            groups.append(_PatternCost())
        elif character == ")" and len(groups) > 1:
            last_cost = groups.pop()
            groups[-1] += last_cost
        elif character == "|":
            groups[-1] += _PatternCost(choices=1)
        elif repeat is not None or character in "?*+":
            added_cost = _compute_repetition_cost(
                last_cost, *_parse_repeat_range(character, repeat)
            )
            groups[-1] += added_cost
            last_cost = (last_cost or _PatternCost()) + added_cost
        else:
            last_cost = None
        position = repeat.end() if repeat is not None else _find_next_index(pattern, position)
    return sum(group.repeats for group in groups)


def _parse_repeat_range(sign: str, repeat: re.Match[str] | None) -> tuple[int, int]:
    """Return the minimum and maximum of a repetition in a regular expression.

    The maximum of ``*`` and ``+`` counts as two.

    Args:
        sign: the sign ``*``, ``+``, ``?`` or ``{`` of the repetition.
        repeat: the match of a repetition with numbers, such as ``{2,5}``; None for a sign alone.
    """
    if repeat is None:
        return int(sign == "+"), 1 if sign == "?" else 2
    minimum = int(repeat[1] or 0)
    return minimum, max(minimum, int(repeat[2] or 0))


def _compute_repetition_cost(
    element: _PatternCost | None, minimum: int, maximum: int
) -> _PatternCost:
    """Return the cost that a repetition adds to the cost of the element before it.

    Args:
        minimum, maximum: the range of the repetition, as `_parse_repeat_range` returns it.
        element: the cost of this element; None if it is a single character or a class.
    """
    if element is None:
        return _PatternCost(repeats=-(-maximum // _CHEAP_REPEATS), nested=max(maximum - minimum, 1))
    added_repeats = (
        (element.nested + element.choices) * max(maximum - 1, 0)
        + element.choices
        + maximum
        - minimum
    )
    return _PatternCost(repeats=added_repeats, nested=added_repeats)


def _find_next_index(pattern: str, position: int) -> int:
    """Return the index after the element at ``position``, which is an escape, a class or a character."""
    if pattern[position] == "[":
        position += 1
        while position < len(pattern) and pattern[position] != "]":
            position += 2 if pattern[position] == "\\" else 1
        return position + 1
    return position + (2 if pattern[position] == "\\" else 1)
