"""Converts the content of template files to templates, and templates to response bodies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from moyin.domain.parameter import Parameter, ParameterType
from moyin.domain.template import Template, find_placeholders
from moyin.errors import InvalidRequest
from moyin.render.templates import wire

_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class InvalidTemplate(ValueError):
    """Raised for an invalid template file; the message is ``<field>: <problem>``."""


def to_template(data: Any) -> Template:
    """Convert the parsed content of a file to a template, or raise `InvalidTemplate`."""
    try:
        file = wire.TemplateFile.model_validate(data)
    except ValidationError as error:
        first_error = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first_error["loc"])
        raise InvalidTemplate(f"{field or 'the file'}: {first_error['msg']}") from None
    _check_graph(file)
    parameters = {name: _to_parameter(name, schema) for name, schema in file.inputs.items()}
    file_data = file.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Template(
        name=file.name,
        title=file.title,
        description=file.description,
        aliases=file.aliases,
        pool=file.pool,
        parameters=parameters,
        schema=_make_schema(file_data.get("inputs", {}), parameters),
        graph=file.graph,
        outputs=file.outputs,
        digest=hashlib.sha256(to_json(file_data)).hexdigest(),
    )


def to_response_body(template: Template) -> wire.TemplateBody:
    return wire.TemplateBody(
        name=template.name,
        title=template.title,
        description=template.description,
        aliases=list(template.aliases),
        pool=template.pool,
        inputs=dict(template.schema),
        outputs=list(template.outputs),
    )


def _make_schema(
    properties: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> dict[str, Any]:
    return {
        "$schema": _SCHEMA_DIALECT,
        "type": "object",
        "properties": dict(properties),
        "required": [name for name, p in parameters.items() if p.default is None],
        "additionalProperties": False,
    }


def _to_parameter(name: str, schema: wire.InputSchema) -> Parameter:
    """Convert the schema of an input to a parameter, or raise `InvalidTemplate`."""
    field = f"inputs.{name}"
    is_numeric = schema.type in ("integer", "number")
    for member in ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum", "multiple_of"):
        if getattr(schema, member) is not None and not is_numeric:
            raise InvalidTemplate(
                f"{field}.{member}: must be absent, because the type is {schema.type}, not a number"
            )
    for member in ("min_length", "max_length", "pattern", "format"):
        if getattr(schema, member) is not None and schema.type != "string":
            raise InvalidTemplate(
                f"{field}.{member}: must be absent, because the type is {schema.type}, not string"
            )
    if schema.format is not None and (schema.enum or schema.default is not None):
        raise InvalidTemplate(
            f"{field}: must have no default and no enum if the format is image: clients upload "
            "their own images"
        )
    parameter = Parameter(
        name=name,
        type=ParameterType(schema.type),
        default=schema.default,
        choices=schema.enum,
        minimum=schema.minimum,
        maximum=schema.maximum,
        exclusive_minimum=schema.exclusive_minimum,
        exclusive_maximum=schema.exclusive_maximum,
        multiple_of=schema.multiple_of,
        min_length=schema.min_length,
        max_length=schema.max_length,
        pattern=schema.pattern,
        image=schema.format == "image",
    )
    _check_values(parameter, schema, field)
    return parameter


def _check_values(parameter: Parameter, schema: wire.InputSchema, field: str) -> None:
    values = {f"enum.{i}": value for i, value in enumerate(schema.enum)}
    if schema.default is not None:
        values["default"] = schema.default
    for member, value in values.items():
        try:
            parameter.check_value(value, f"{field}.{member}")
        except InvalidRequest as error:
            message = error.message.removeprefix(f"{field}.{member} ")
            raise InvalidTemplate(f"{field}.{member}: {message}") from None


def _check_graph(file: wire.TemplateFile) -> None:
    used_inputs: set[str] = set()
    for node_id, node in file.graph.items():
        field = f"graph.{node_id[:64]}"
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise InvalidTemplate(
                f"{field}: must be an object with a class_type; export the workflow in API format "
                "from ComfyUI"
            )
        inputs = node.get("inputs", {})
        if not isinstance(inputs, dict):
            raise InvalidTemplate(f"{field}.inputs: must be an object")
        other_members = {key: value for key, value in node.items() if key != "inputs"}
        if any(find_placeholders(other_members)):
            raise InvalidTemplate(f"{field}: must contain ${{inputs.<name>}} only in its inputs")
        for name, value in inputs.items():
            for placeholder in find_placeholders(value):
                if placeholder not in file.inputs:
                    raise InvalidTemplate(
                        f"{field}.inputs.{name[:64]}: the template has no input {placeholder!r}"
                    )
                used_inputs.add(placeholder)
    unused_inputs = file.inputs.keys() - used_inputs
    if unused_inputs:
        unused_input = min(unused_inputs)
        raise InvalidTemplate(
            f"inputs.{unused_input}: no node of the graph contains ${{inputs.{unused_input}}}"
        )
    for number, node_id in enumerate(file.outputs):
        if node_id not in file.graph:
            raise InvalidTemplate(f"outputs.{number}: the graph has no node {node_id!r}")
