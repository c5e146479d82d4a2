"""Renders errors in the format of the Comfy API v2, whose SDK maps codes to exceptions."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from moyin import errors
from moyin.http.problems import ErrorBody, build_error_headers, get_http_status

# The status and code by the type of the error; the first entry that matches is used.
_CODES: tuple[tuple[type[errors.MoyinError], int, str], ...] = (
    (errors.InvalidGraph, 422, "invalid_workflow"),
    (errors.NodeNotAllowed, 422, "invalid_workflow"),
    (errors.EditorGraphFormat, 422, "workflow_format_ui"),
    (errors.InputNotFound, 422, "missing_asset"),
    (errors.IdempotencyMismatch, 422, "idempotency_key_reuse"),
    (errors.ContentMismatch, 409, "hash_mismatch"),
    (errors.ArtifactInUse, 409, "asset_in_use"),
    (errors.ContentNotFound, 404, "blob_not_found"),
    (errors.NotFound, 404, "not_found"),
    (errors.InsufficientScope, 403, "forbidden"),
    (errors.PriorityNotAllowed, 403, "forbidden"),
    (errors.CrossSiteRequest, 403, "forbidden"),
    (errors.ModelNotAllowed, 403, "forbidden"),
    (errors.AccessError, 401, "unauthorized"),
    (errors.BudgetExceeded, 402, "insufficient_credits"),
    (errors.TooManyJobs, 429, "queue_full"),
    (errors.Overloaded, 429, "queue_full"),
    (errors.LimitExceeded, 429, "rate_limited"),
)
_GRAPH_ERRORS = (errors.InvalidGraph, errors.InputNotFound, errors.NodeNotAllowed)
# The status and code of an InvalidRequest, by the prefix of its field.
_FIELD_CODES: tuple[tuple[str, int, str], ...] = (
    ("workflow", 422, "invalid_workflow"),
    ("metadata[", 400, "invalid_metadata_filter"),
    ("metadata", 422, "metadata_invalid"),
    ("cursor", 400, "invalid_cursor"),
)


def render_error(error: errors.MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render an error as the Comfy API v2 expects it.

    The body is ``{"error": {"code", "message", "details": {"code", "request_id", …}}}``.
    """
    status, code = _get_status_and_code(error)
    details = {**_build_details(error), "code": error.code, "request_id": request_id}
    if error.field is not None:
        details["field"] = error.field
    return ErrorBody(
        status=status,
        body=to_json({"error": {"code": code, "message": error.message, "details": details}}),
        headers={
            "content-type": "application/json",
            "x-comfy-request-id": request_id,
            **build_error_headers(error),
        },
    )


def _get_status_and_code(error: errors.MoyinError) -> tuple[int, str]:
    if type(error) is errors.InvalidRequest:
        for prefix, status, code in _FIELD_CODES:
            if (error.field or "").startswith(prefix):
                return status, code
    for error_type, status, code in _CODES:
        if isinstance(error, error_type):
            return status, code
    return get_http_status(error), error.code


def _build_details(error: errors.MoyinError) -> dict[str, Any]:
    """Return the error's details, with ComfyUI's node errors converted to the SDK's format."""
    if not isinstance(error, _GRAPH_ERRORS):
        return dict(error.details)
    node_reports = error.details.get("node_errors") or {}
    return {
        "node_errors": {
            node: [
                {
                    "field": (node_error.get("extra_info") or {}).get("input_name"),
                    "reason": node_error.get("type"),
                    "message": node_error.get("details") or node_error.get("message"),
                }
                for node_error in report.get("errors", [])
            ]
            for node, report in node_reports.items()
        }
    }
