"""Builds the gateway's OpenAPI document, and describes bodies that handlers parse themselves.

Handlers parse a body themselves if it is a stream, or if clients do not declare it as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deployments.gateway.cluster.feeds import Included
from deployments.openapi import (
    EVENT_TOKEN_SCHEME,
    QUERY_KEY_SCHEME,
    document_problems,
    document_security,
)
from moyin.comfy_api.protocol.paths import is_comfyui_path
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.event_bodies import EVENT_BODIES, JOB_EVENT, StreamError
from moyin.jobs.protocol.filters import BulkRequest

_SCHEMA_REFERENCE = "#/components/schemas/{model}"
_DEFINITIONS = "#/$defs/"
# The models app describes the bodies.
_EVENT_OF_MODELS_APP = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": [Included.BACKENDS, Included.MODELS, Included.USAGE]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


def build_document(
    app: FastAPI,
    is_public: Callable[[str], bool],
    accepts_event_token: Callable[[str, str], bool],
) -> dict[str, Any]:
    """Return the app's OpenAPI document, with the schemas of job requests and of events.

    Args:
        is_public: returns True if the route of a path needs no key.
        accepts_event_token: returns True if a method and path accept an event token.
    """

    def get_query_schemes(method: str, path: str) -> Mapping[str, Mapping[str, str]]:
        if accepts_event_token(method, path):
            return EVENT_TOKEN_SCHEME
        return QUERY_KEY_SCHEME if is_comfyui_path(path) else {}

    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        request_schema = wire.JOB_REQUEST.json_schema(ref_template=_SCHEMA_REFERENCE)
        bulk_schema = BulkRequest.model_json_schema(ref_template=_SCHEMA_REFERENCE)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        event_schema = JOB_EVENT.json_schema(ref_template=_SCHEMA_REFERENCE, mode="serialization")
        error_schema = StreamError.model_json_schema(mode="serialization")
        schemas.update(
            request_schema.pop("$defs") | bulk_schema.pop("$defs") | event_schema.pop("$defs")
        )
        schemas |= {"JobRequest": request_schema, "BulkRequest": bulk_schema}
        schemas |= {"JobEvent": event_schema, "StreamError": error_schema}
        schemas["ServerSentEvent"] = {"oneOf": list(_list_server_sent_events())}
        newest_jobs_schema = wire.NewestJobs.model_json_schema(
            ref_template=_SCHEMA_REFERENCE, mode="serialization"
        )
        schemas |= {**newest_jobs_schema.pop("$defs"), **schemas, "NewestJobs": newest_jobs_schema}
        schemas["ClusterEvent"] = {
            "oneOf": [
                _describe_event("cluster", "ClusterBody"),
                _describe_event(Included.JOBS, "NewestJobs"),
                _describe_event(Included.ROUTES, "RoutesBody"),
                _EVENT_OF_MODELS_APP,
            ]
        }
        document_problems(document, _has_comfyui_errors)
        document_security(document, is_public, get_query_schemes)
        app.openapi_schema = document
    return app.openapi_schema


def _list_server_sent_events() -> Iterator[dict[str, Any]]:
    """Yield the schema of each server-sent event, whose data is JSON encoded as a string."""
    bodies = {kind.value: body for kind, body in EVENT_BODIES.items()}
    for kind, body in {**bodies, "error": StreamError}.items():
        yield _describe_event(kind, body.__name__)


def _describe_event(kind: str, body: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"const": kind},
            "id": {"type": "string"},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": _SCHEMA_REFERENCE.format(model=body)},
            },
        },
    }


def describe_body(
    schema: Mapping[str, Any], *media_types: str, is_required: bool = True
) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body, by default JSON, has the schema."""
    schema = _inline_definitions(schema, schema.get("$defs", {}))
    content = {kind: {"schema": schema} for kind in media_types or ("application/json",)}
    body: dict[str, Any] = {"content": content}
    return {"requestBody": {"required": True, **body} if is_required else body}


def describe_file_form(
    file_field: str, text_fields: Mapping[str, Any], *required_texts: str
) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that receives a file and text fields as a form.

    Args:
        file_field: the name of the form's file field, which is mandatory.
        text_fields: the schemas of the form's text fields, by name.
        required_texts: the names of the mandatory text fields.
    """
    members = {**text_fields, file_field: {"type": "string", "format": "binary"}}
    schema = {"type": "object", "required": [file_field, *required_texts], "properties": members}
    return describe_body(schema, "multipart/form-data")


def _inline_definitions(value: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a part of a schema with its references to ``$defs`` replaced by the definitions.

    In an OpenAPI document, such a reference would be looked up in the whole document and not in the
    schema. The definitions must not be recursive.
    """
    if isinstance(value, list):
        return [_inline_definitions(item, definitions) for item in value]
    if not isinstance(value, Mapping):
        return value
    reference = value.get("$ref", "")
    if isinstance(reference, str) and reference.startswith(_DEFINITIONS):
        return _inline_definitions(definitions[reference.removeprefix(_DEFINITIONS)], definitions)
    return {
        name: _inline_definitions(item, definitions)
        for name, item in value.items()
        if name != "$defs"
    }


def _has_comfyui_errors(path: str) -> bool:
    return is_comfyui_path(path) and not path.startswith("/api/v2/")
