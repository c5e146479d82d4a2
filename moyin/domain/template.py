"""Defines `Template`, a named graph with typed inputs, and fills in the inputs of clients.

In the graph, ``${inputs.<name>}`` is a placeholder for an input. A string that consists of one
placeholder is replaced by the value, with its type; within a longer string, the value is converted
to text. A client's value can become neither a link between nodes nor a reference to a step, except
for the object ``{"from": "steps.0.text"}`` in a pipeline, which is a reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moyin.domain.parameter import Parameter, Scalar
from moyin.domain.references import escape_references
from moyin.errors import InvalidRequest

_INPUT = re.compile(r"(?<!\$)\$\{inputs\.([a-z][a-z0-9_]*)\}")
_ANY = re.compile(r"(?<!\$)\$\{[^}]*\}?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A named graph with placeholders for typed inputs.

    Attributes:
        aliases: other names of the template.
        pool: the default render pool.
        parameters: the inputs by name.
        schema: the published JSON Schema (2020-12) of the inputs.
        graph: the graph in ComfyUI's API format.
        outputs: ids of the nodes whose files are the result; empty means all nodes.
        digest: a hash of the whole template.
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


def fill_template(
    template: Template, inputs: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Return the template's graph with the client's inputs filled in.

    Args:
        prefix: the start of field names in errors, such as ``steps.1.``.

    Raises:
        InvalidRequest: an input is invalid or missing; the error names the input.
    """
    for name in inputs:
        if name not in template.parameters:
            raise InvalidRequest(
                f"template {template.name!r} has no input {name[:64]!r}; it has: "
                f"{', '.join(template.parameters) or 'none'}",
                field=f"{prefix}inputs.{name[:64]}",
            )
    values = {
        name: _check_input(parameter, inputs, f"{prefix}inputs.{name}")
        for name, parameter in template.parameters.items()
    }
    return {
        node_id: {**node, "inputs": _fill_value(node.get("inputs", {}), values)}
        for node_id, node in template.graph.items()
    }


def find_placeholders(value: Any) -> Iterator[str]:
    """Yield the names of the inputs whose placeholders ``value`` contains.

    For any other ``${…}``, the whole text is yielded, such as ``${steps.0.text}``.
    """
    if isinstance(value, str):
        for placeholder in _ANY.finditer(value):
            match = _INPUT.fullmatch(placeholder[0])
            yield match[1] if match else placeholder[0]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from find_placeholders(item)
    elif isinstance(value, list):
        for item in value:
            yield from find_placeholders(item)


class _Reference(str):
    """A text that is a reference to an earlier step and must not be escaped."""


def _check_input(parameter: Parameter, inputs: Mapping[str, Any], field: str) -> Scalar:
    value = inputs.get(parameter.name)
    if value is None:
        if parameter.default is None:
            raise InvalidRequest(
                f"{field} is missing: this input has no default value", field=field
            )
        value = parameter.default
    if isinstance(value, Mapping):
        return _Reference(parameter.to_reference(value, field))
    return parameter.check_value(value, field)


def _fill_value(value: Any, values: Mapping[str, Scalar]) -> Any:
    if isinstance(value, str):
        full_match = _INPUT.fullmatch(value)
        if full_match:
            return _escape_value(values[full_match[1]])
        return _fill_text(value, values) if _INPUT.search(value) else value
    if isinstance(value, Mapping):
        return {key: _fill_value(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_value(item, values) for item in value]
    return value


def _escape_value(value: Scalar) -> Any:
    return str(value) if isinstance(value, _Reference) else escape_references(value)


def _fill_text(text: str, values: Mapping[str, Scalar]) -> str:
    """Return the text with its placeholders filled.

    The text is escaped, so that values cannot form a reference.
    """
    texts, plain_text = [], ""
    # Every second piece is the name of an input.
    for index, piece in enumerate(_INPUT.split(text)):
        value = values[piece] if index % 2 else piece.replace("$${", "${")
        if isinstance(value, _Reference):
            texts += [escape_references(plain_text), str(value)]
            plain_text = ""
        else:
            plain_text += _to_text(value)
    return "".join([*texts, escape_references(plain_text)])


def _to_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
