"""Adds authentication and errors (RFC 9457 problem details) to an app's OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_KEY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a person's access token: `Authorization: Bearer …`.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "An API key, as Anthropic's clients send it.",
    },
}
QUERY_KEY_SCHEME: Mapping[str, Mapping[str, str]] = {
    "queryKey": {
        "type": "apiKey",
        "in": "query",
        "name": "api_key",
        "description": "An API key, for clients of ComfyUI that can send no header.",
    }
}
EVENT_TOKEN_SCHEME: Mapping[str, Mapping[str, str]] = {
    "eventToken": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "A token of `POST /jobs/{id}/token`, which reads one job's events and files.",
    }
}
_PATH_PARAMETER = re.compile(r"\{[^}]+\}")
FILE_CONTENT: Mapping[str, Any] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file, with its own content type.", "content": FILE_CONTENT},
    206: {"description": "The requested range of the file.", "content": FILE_CONTENT},
    304: {"description": "The client's copy is current."},
    416: {"description": "The range lies outside the file."},
}

_STRING_SCHEMA = {"type": "string"}
_PROBLEM_SCHEMA: Mapping[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with a stable `code`; some carry further members.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        **dict.fromkeys(("type", "title", "instance", "code", "request_id"), _STRING_SCHEMA),
        "status": {"type": "integer"},
        "detail": {**_STRING_SCHEMA, "description": "What is wrong, and what would be right."},
        "field": {**_STRING_SCHEMA, "description": "The offending part of the request."},
    },
}
_COMFYUI_ERROR_SCHEMA: Mapping[str, Any] = {
    "title": "ComfyError",
    "description": "ComfyUI's error body, with a stable `code` beside it.",
    "type": "object",
    "required": ["error", "node_errors", "code", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "details", "extra_info"],
            "properties": {
                **dict.fromkeys(("type", "message", "details"), _STRING_SCHEMA),
                "extra_info": {"type": "object"},
            },
        },
        "node_errors": {"type": "object"},
        "code": _STRING_SCHEMA,
        "request_id": _STRING_SCHEMA,
    },
}
_ERROR_DESCRIPTIONS = {
    "400": "The request is wrong.",
    "401": "The key or token is missing or invalid.",
    "402": "The budget is used up.",
    "403": "A scope is missing.",
    "404": "The resource does not exist, or belongs to another tenant.",
    "409": "The resource is in another state, or the name is taken.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "422": "The Idempotency-Key was used for another request.",
    "429": "Too many requests or attempts; Retry-After tells how long to wait.",
    "503": "A service that this request needs is unavailable.",
}


def document_security(
    document: dict[str, Any],
    is_public: Callable[[str], bool],
    extra_schemes: Callable[[str, str], Mapping[str, Mapping[str, str]]] = lambda _, __: {},
) -> None:
    """Add the accepted kinds of API keys to an OpenAPI document, for all non-public routes.

    Args:
        is_public: returns True if the route of a path needs no key.
        extra_schemes: returns the additional security schemes, by name, that the route of a method
            and a path accepts.
    """
    schemes = dict(_KEY_SCHEMES)
    document["security"] = _require_any(_KEY_SCHEMES)
    for path, methods in document["paths"].items():
        example_path = _PATH_PARAMETER.sub("x", path)
        for method, operation in methods.items():
            extra_security = extra_schemes(method.upper(), example_path)
            schemes |= extra_security
            if is_public(example_path):
                operation["security"] = []
            elif extra_security:
                operation["security"] = _require_any({**_KEY_SCHEMES, **extra_security})
    document.setdefault("components", {})["securitySchemes"] = schemes


def _require_any(schemes: Mapping[str, Any]) -> Sequence[Mapping[str, Sequence[str]]]:
    return [{name: []} for name in schemes]


def document_problems(
    document: dict[str, Any], is_comfyui: Callable[[str], bool] = lambda _: False
) -> None:
    """Replace FastAPI's error responses in an OpenAPI document by the errors of our apps.

    Args:
        is_comfyui: returns True if the errors of a path have ComfyUI's format.
    """
    schemas = _remove_framework_errors(document)
    schemas["Problem"] = _PROBLEM_SCHEMA
    schemas["ComfyError"] = _COMFYUI_ERROR_SCHEMA
    for path, methods in document["paths"].items():
        media_type, schema = (
            ("application/json", "ComfyError")
            if is_comfyui(path)
            else ("application/problem+json", "Problem")
        )
        content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        for operation in methods.values():
            responses = operation["responses"]
            for status, description in _ERROR_DESCRIPTIONS.items():
                response = responses.setdefault(status, {"description": description})
                response["content"] = {**response.get("content", {}), **content}


def document_protocol_errors(document: dict[str, Any]) -> None:
    """Replace FastAPI's error responses by an error response whose body may be any object.

    Each protocol of the app has its own format of errors.
    """
    _remove_framework_errors(document)
    schema = {"schema": {"type": "object"}}
    content = {"application/json": schema, "application/problem+json": schema}
    response = {"description": "The protocol's error", "content": content}
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"]["default"] = response


def _remove_framework_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Remove FastAPI's error responses, and return the document's remaining schemas by name."""
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return schemas
