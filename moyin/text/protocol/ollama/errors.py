"""Renders errors in Ollama's format, as a response body and as the last line of a stream."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from moyin import errors
from moyin.http.problems import ErrorBody, build_error_headers, get_http_status

# Ollama's names of the fields that `moyin.domain.chat` and its errors name as OpenAI does.
_CLIENT_FIELDS = {
    "frequency_penalty": "options.frequency_penalty",
    "max_tokens": "options.num_predict",
    "min_p": "options.min_p",
    "presence_penalty": "options.presence_penalty",
    "reasoning_effort": "think",
    "repeat_penalty": "options.repeat_penalty",
    "response_format": "format",
    "seed": "options.seed",
    "stop": "options.stop",
    "temperature": "options.temperature",
    "top_k": "options.top_k",
    "top_p": "options.top_p",
}


def render_error(error: errors.MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` as ``{"error": message, code, request_id, field, details}``.

    Args:
        path: the path of the call; not used, because all calls have the same errors.
    """
    return ErrorBody(
        status=get_http_status(error),
        body=to_json(_build_error_body(error, request_id)),
        headers={"content-type": "application/json", **build_error_headers(error)},
    )


def render_error_event(error: errors.MoyinError, request_id: str) -> bytes:
    """Render ``error`` as the last line of a broken stream, so that Ollama's SDK raises it."""
    return to_json(_build_error_body(error, request_id)) + b"\n"


def _build_error_body(error: errors.MoyinError, request_id: str) -> dict[str, Any]:
    message = error.message
    if isinstance(error, errors.BackendRejected) and error.reason is not None:
        # Ollama's clients know its messages, and its own tests compare them.
        message = error.reason
    body = {"error": message, "code": error.code, "request_id": request_id}
    if error.field is not None:
        body["field"] = _CLIENT_FIELDS.get(error.field, error.field)
    if error.details:
        return {**body, "details": error.details}
    return body
