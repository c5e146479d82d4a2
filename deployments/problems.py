"""What an app's description says of its errors: RFC 9457 problem details."""

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
_TOLD = {
    "400": "The request is wrong.",
    "401": "Nothing is proven.",
    "402": "The budget is used up.",
    "403": "A scope is missing.",
    "404": "There is no such thing, or it is somebody else's.",
    "409": "It is in another state, or the name is taken.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "422": "The Idempotency-Key was used for another request.",
    "429": "Too many requests or attempts; Retry-After tells how long to wait.",
    "503": "Something that this needs is away.",
}


def document_problems(
    described: dict[str, Any], is_comfyui: Callable[[str], bool] = lambda _: False
) -> None:
    """Put the errors that any route may answer into an OpenAPI description, in the place of
    FastAPI's own.

    Args:
        is_comfyui: tells the paths whose errors have ComfyUI's shape.
    """
    schemas = _without_frameworks_own(described)
    schemas["Problem"] = _SCHEMA
    schemas["ComfyError"] = _COMFYUI_SCHEMA
    for path, methods in described["paths"].items():
        kind, schema = (
            ("application/json", "ComfyError")
            if is_comfyui(path)
            else ("application/problem+json", "Problem")
        )
        content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        for operation in methods.values():
            responses = operation["responses"]
            for status, told in _TOLD.items():
                response = responses.setdefault(status, {"description": told})
                response["content"] = {**response.get("content", {}), **content}


def document_protocol_errors(described: dict[str, Any]) -> None:
    """The same where every protocol has an error body of its own."""
    _without_frameworks_own(described)
    told = {
        "description": "The protocol's error",
        "content": {
            media_type: {"schema": {"type": "object"}}
            for media_type in ("application/json", "application/problem+json")
        },
    }
    for methods in described["paths"].values():
        for operation in methods.values():
            operation["responses"]["default"] = told


def _without_frameworks_own(described: dict[str, Any]) -> dict[str, Any]:
    """Take FastAPI's errors out; returns the schemas."""
    schemas: dict[str, Any] = described.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for methods in described["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return schemas
