"""Checks the JSON schemas of requests for local models, and simplifies expensive tool schemas.

Providers enforce the patterns in a tool's schema only for strict tools, so clients use patterns
freely: Claude Code has ``^[\\s\\S]{0,300}$``. Local servers compile patterns into grammars, which
may take minutes. Expensive patterns are therefore removed, so that the tool can be called; the
client validates the arguments itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.domain.schemas import check_schemas, drop_expensive_patterns
from moyin.errors import SchemaTooLarge
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec


def limit_schemas(codec: ProtocolCodec, request: ParsedRequest) -> ParsedRequest:
    """Return the request with JSON schemas that are cheap to compile into grammars.

    Raises:
        SchemaTooLarge, UnsupportedFeature: a schema is too expensive; the error names the field.
    """
    try:
        check_schemas(request.iterate_schemas())
    except SchemaTooLarge:
        relaxed_request = _relax_tools(codec, request)
        if relaxed_request is request:
            raise
        check_schemas(relaxed_request.iterate_schemas())
        return relaxed_request
    return request


def _relax_tools(codec: ProtocolCodec, request: ParsedRequest) -> ParsedRequest:
    data: Any = request.data
    for field, schema in request.iterate_schemas():
        path_parts = field.split(".")
        if path_parts[0] == "tools" and not isinstance(schema, str):
            relaxed_schema = drop_expensive_patterns(schema)
            if relaxed_schema is not schema:
                data = _replace_in_tool(data, path_parts, relaxed_schema)
    return request if data is request.data else codec.replace_body(request, data)


def _replace_in_tool(json_value: Any, path_parts: list[str], schema: Any) -> Any:
    """Return ``json_value`` with a new schema at ``path_parts``; a strict tool keeps its own."""
    if isinstance(json_value, list):
        index = int(path_parts[0])
        new_item = _replace_in_tool(json_value[index], path_parts[1:], schema)
        return (
            json_value
            if new_item is json_value[index]
            else [*json_value[:index], new_item, *json_value[index + 1 :]]
        )
    if not isinstance(json_value, Mapping) or json_value.get("strict"):
        return json_value
    name = path_parts[0]
    new_member = (
        schema
        if len(path_parts) == 1
        else _replace_in_tool(json_value[name], path_parts[1:], schema)
    )
    return json_value if new_member is json_value[name] else {**json_value, name: new_member}
