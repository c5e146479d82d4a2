"""Describes errors (RFC 9457 problem details) in an app's OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["document_problems", "document_protocol_errors"]

_SCHEMA: Mapping[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with a stable `code`; some carry further members.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, and what would be right."},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "field": {"type": "string", "description": "The offending part of the request."},
    },
}
_COMFYUI_SCHEMA: Mapping[str, Any] = {
    "title": "ComfyError",
    "description": "ComfyUI's error body, with a stable `code` beside it.",
    "type": "object",
    "required": ["error", "node_errors", "code", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "details", "extra_info"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "string"},
                "extra_info": {"type": "object"},
            },
        },
        "node_errors": {"type": "object"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
    },
}
_DESCRIPTIONS = {
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


def document_problems(
    described: dict[str, Any], is_comfyui_path: Callable[[str], bool] = lambda _: False
) -> None:
    """Replace FastAPI's own errors in an OpenAPI document by those that any route may return.

    Args:
        is_comfyui_path: tells whether errors of a path have ComfyUI's shape.
    """
    schemas = _remove_framework_errors(described)
    schemas["Problem"] = _SCHEMA
    schemas["ComfyError"] = _COMFYUI_SCHEMA
    for path, methods in described["paths"].items():
        kind, schema = (
            ("application/json", "ComfyError")
            if is_comfyui_path(path)
            else ("application/problem+json", "Problem")
        )
        content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        for operation in methods.values():
            responses = operation["responses"]
            for status, description in _DESCRIPTIONS.items():
                response = responses.setdefault(status, {"description": description})
                response["content"] = {**response.get("content", {}), **content}


def document_protocol_errors(described: dict[str, Any]) -> None:
    """Replace FastAPI's errors where every protocol has an error body of its own."""
    _remove_framework_errors(described)
    response = {
        "description": "The protocol's error",
        "content": {
            media_type: {"schema": {"type": "object"}}
            for media_type in ("application/json", "application/problem+json")
        },
    }
    for methods in described["paths"].values():
        for operation in methods.values():
            operation["responses"]["default"] = response


def _remove_framework_errors(described: dict[str, Any]) -> dict[str, Any]:
    """Remove FastAPI's errors and return the document's schemas."""
    schemas: dict[str, Any] = described.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for methods in described["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return schemas
