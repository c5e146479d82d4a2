"""Renders errors in OpenAI's format, as a response body and as an event of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from moyin import errors
from moyin.http.problems import ErrorBody, build_error_headers, get_http_status
from moyin.http.sse import encode_event

_NO_FIELDS: Mapping[str, str] = {}


def render_error(
    error: errors.MoyinError,
    request_id: str,
    path: str,
    client_fields: Mapping[str, str] = _NO_FIELDS,
) -> ErrorBody:
    """Render ``error`` as ``{"error": {message, type, param, code}, "request_id"}``.

    Args:
        path: the path of the call; not used, because all calls have the same errors.
        client_fields: the client's names of fields, by their names in chat completions. It has only
            the fields whose names differ.
    """
    return ErrorBody(
        status=get_http_status(error),
        body=to_json(_build_error_body(error, request_id, client_fields)),
        headers={"content-type": "application/json", **build_error_headers(error)},
    )


def render_error_event(error: errors.MoyinError, request_id: str) -> bytes:
    """Render ``error`` as the last event of a broken stream, so that OpenAI's SDKs raise it."""
    return encode_event(_build_error_body(error, request_id))


def _build_error_body(
    error: errors.MoyinError, request_id: str, client_fields: Mapping[str, str] = _NO_FIELDS
) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": _select_error_type(error),
            "param": client_fields.get(error.field or "", error.field),
            "code": error.code,
            **({"details": error.details} if error.details else {}),
        },
        "request_id": request_id,
    }


def _select_error_type(error: errors.MoyinError) -> str:
    match error:
        case (
            errors.RequestError() | errors.NotFound() | errors.Conflict() | errors.BackendRejected()
        ):
            return "invalid_request_error"
        case errors.MissingKey() | errors.InvalidKey():
            return "authentication_error"
        case errors.AccessError():
            return "permission_error"
        case errors.Overloaded() | errors.RateLimited():
            return "rate_limit_error"
        case errors.BudgetExceeded():
            return "insufficient_quota"
        case errors.Unavailable() | errors.BackendUnavailable() | errors.BackendTimeout():
            return "service_unavailable_error"
        case _:
            return "server_error"
