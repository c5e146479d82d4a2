"""`Template`: a named graph with typed inputs, and the filling of it.

In the graph, ``${inputs.<name>}`` stands for an input. A string that is nothing but one takes the
value with its type; inside a longer string the value is written as text. What a client gives is
data and stays it: no value can become a link between nodes, and none is read as a reference to a
step, however it is spelt. Only the object ``{"from": "steps.0.text"}``, in a pipeline, is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moyin.domain.parameter import Parameter, Scalar
from moyin.domain.references import escape_references
from moyin.errors import InvalidRequest

__all__ = ["Template", "fill", "placeholders"]

_INPUT = re.compile(r"(?<!\$)\$\{inputs\.([a-z][a-z0-9_]*)\}")
_ANY = re.compile(r"(?<!\$)\$\{[^}]*\}?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A graph with holes.

    Attributes:
        aliases: other names that find it.
        pool: where it renders when the request names no pool.
        parameters: by name.
        schema: JSON Schema (2020-12) of the inputs, as it is published.
        graph: in ComfyUI's API format.
        outputs: ids of the nodes whose files are the result; none: all.
        digest: changes when anything of it does.
    """

    name: str
    title: str
    description: str
    aliases: tuple[str, ...]
    pool: str | None
    parameters: Mapping[str, Parameter]
    schema: Mapping[str, Any]
    graph: Mapping[str, Any]
    outputs: tuple[str, ...]
    digest: str


def fill(template: Template, inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The template's graph with ``inputs`` in it: the payload of a render step.

    Args:
        prefix: of fields in errors, such as ``steps.1.``.

    Raises:
        InvalidRequest: naming the input.
    """
    for name in inputs:
        if name not in template.parameters:
            raise InvalidRequest(
                f"template {template.name!r} has no input {name[:64]!r}; it has: "
                f"{', '.join(template.parameters) or 'none'}",
                field=f"{prefix}inputs.{name[:64]}",
            )
    values = {
        name: _value(parameter, inputs, f"{prefix}inputs.{name}")
        for name, parameter in template.parameters.items()
    }
    return {
        node_id: {**node, "inputs": _filled(node.get("inputs", {}), values)}
        for node_id, node in template.graph.items()
    }


def placeholders(value: Any) -> Iterator[str]:
    """Names of the inputs that ``value`` refers to; anything else in ``${…}`` as it is written."""
    if isinstance(value, str):
        for found in _ANY.finditer(value):
            match = _INPUT.fullmatch(found[0])
            yield match[1] if match else found[0]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from placeholders(item)
    elif isinstance(value, list):
        for item in value:
            yield from placeholders(item)


class _Reference(str):
    """Text of the graph that is to be read as a reference."""


def _value(parameter: Parameter, inputs: Mapping[str, Any], field: str) -> Scalar:
    value = inputs.get(parameter.name)
    if value is None:
        if parameter.default is None:
            raise InvalidRequest(f"{field} is missing", field=field)
        value = parameter.default
    if isinstance(value, Mapping):
        return _Reference(parameter.reference(value, field))
    return parameter.check(value, field)


def _filled(value: Any, values: Mapping[str, Scalar]) -> Any:
    if isinstance(value, str):
        whole = _INPUT.fullmatch(value)
        if whole:
            return _quoted(values[whole[1]])
        return _composed(value, values) if _INPUT.search(value) else value
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return value


def _quoted(value: Scalar) -> Any:
    return str(value) if isinstance(value, _Reference) else escape_references(value)


def _composed(text: str, values: Mapping[str, Scalar]) -> str:
    """Quoted as a whole: what two values spell together is no reference either."""
    parts, plain = [], ""
    # Every second piece is the name of an input.
    for number, piece in enumerate(_INPUT.split(text)):
        value = values[piece] if number % 2 else piece.replace("$${", "${")
        if isinstance(value, _Reference):
            parts += [escape_references(plain), str(value)]
            plain = ""
        else:
            plain += _text(value)
    return "".join([*parts, escape_references(plain)])


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
