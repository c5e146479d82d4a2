"""Errors as ComfyUI's clients read them."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from moyin.errors import InputNotFound, InvalidGraph, MoyinError, NodeNotAllowed
from moyin.http.problems import ErrorBody, error_headers, status_of

__all__ = ["error_body", "render_error"]

_GRAPH_ERRORS = (InvalidGraph, InputNotFound, NodeNotAllowed)


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """``{"error": {"type", "message", "details", "extra_info"}, "node_errors"}``, and beside them
    our ``code`` and the ``request_id``. What ComfyUI itself said of a graph is passed on."""
    return ErrorBody(
        status=status_of(error),
        body=to_json({**error_body(error), "code": error.code, "request_id": request_id}),
        headers={"content-type": "application/json", **error_headers(error)},
    )


def error_body(error: MoyinError) -> dict[str, Any]:
    """The members that are ComfyUI's."""
    if isinstance(error, _GRAPH_ERRORS) and "error" in error.details:
        return {
            "error": error.details["error"],
            "node_errors": error.details.get("node_errors", {}),
        }
    told = {
        "type": error.code,
        "message": error.message,
        "details": error.field or "",
        "extra_info": dict(error.details),
    }
    return {"error": told, "node_errors": {}}
