"""Renders errors in Anthropic's format, as a response body and as an event of a stream."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from moyin import errors
from moyin.http.problems import ErrorBody, build_error_headers, get_http_status
from moyin.http.sse import encode_event

# Anthropic's names of the fields that `moyin.domain.chat` and its errors name as OpenAI does.
_CLIENT_FIELDS = {
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}


def render_error(error: errors.MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` as ``{"type": "error", "error": {type, message, code}, "request_id"}``.

    Args:
        path: the path of the call; not used, because all calls have the same errors.
    """
    return ErrorBody(
        status=get_http_status(error),
        body=to_json(_build_error_body(error, request_id)),
        headers={
            "content-type": "application/json",
            "request-id": request_id,
            **build_error_headers(error),
        },
    )


def render_error_event(error: errors.MoyinError, request_id: str) -> bytes:
    """Render ``error`` as the last event of a broken stream, so that Anthropic's SDKs raise it."""
    return encode_event(_build_error_body(error, request_id), name="error")


def _build_error_body(error: errors.MoyinError, request_id: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": _select_error_type(error),
        "message": error.message,
        "code": error.code,
    }
    if error.field is not None:
        body["field"] = _CLIENT_FIELDS.get(error.field, error.field)
    if error.details:
        body["details"] = error.details
    return {"type": "error", "error": body, "request_id": request_id}


def _select_error_type(error: errors.MoyinError) -> str:
    match error:
        case errors.BodyTooLarge():
            return "request_too_large"
        case errors.RequestError() | errors.Conflict() | errors.BackendRejected():
            return "invalid_request_error"
        case errors.MissingKey() | errors.InvalidKey():
            return "authentication_error"
        case errors.AccessError():
            return "permission_error"
        case errors.NotFound():
            return "not_found_error"
        case errors.Overloaded() | errors.RateLimited():
            return "rate_limit_error"
        case errors.BudgetExceeded():
            return "billing_error"
        case errors.BackendTimeout():
            return "timeout_error"
        case errors.Unavailable() | errors.BackendUnavailable():
            return "overloaded_error"
        case _:
            return "api_error"
