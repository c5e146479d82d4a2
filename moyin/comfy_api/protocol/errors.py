"""Renders errors in the format that clients of ComfyUI's own API expect."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from moyin.errors import InputNotFound, InvalidGraph, MoyinError, NodeNotAllowed
from moyin.http.problems import ErrorBody, build_error_headers, get_http_status

_GRAPH_ERRORS = (InvalidGraph, InputNotFound, NodeNotAllowed)


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render an error as ComfyUI's error body, and add the members ``code`` and ``request_id``."""
    return ErrorBody(
        status=get_http_status(error),
        body=to_json({**build_error_body(error), "code": error.code, "request_id": request_id}),
        headers={"content-type": "application/json", **build_error_headers(error)},
    )


def build_error_body(error: MoyinError) -> dict[str, Any]:
    """Return the error body of ComfyUI's API.

    Its form is ``{"error": {"type", "message", "details", "extra_info"}, "node_errors": {…}}``. If
    the error's details contain ComfyUI's response to an invalid graph, that response is returned.
    """
    if isinstance(error, _GRAPH_ERRORS) and "error" in error.details:
        return {
            "error": error.details["error"],
            "node_errors": error.details.get("node_errors", {}),
        }
    body = {
        "type": error.code,
        "message": error.message,
        "details": error.field or "",
        "extra_info": dict(error.details),
    }
    return {"error": body, "node_errors": {}}
