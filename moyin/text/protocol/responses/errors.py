"""Renders errors in OpenAI's format, with the field names of the Responses API."""

from __future__ import annotations

from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.sse import encode_event
from moyin.text.protocol.openai.errors import render_error as render_openai_error

# Field names of the Responses API, by the names that `moyin.domain.chat` and its errors use.
_CLIENT_FIELDS = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` as ``{"error": {message, type, param, code}, "request_id"}``.

    Args:
        path: the path of the call; not used, because all calls have the same errors.
    """
    return render_openai_error(error, request_id, path, _CLIENT_FIELDS)


def encode_error_event(error: MoyinError, request_id: str, sequence_number: int) -> bytes:
    """Encode the event that ends a broken stream.

    Args:
        sequence_number: the number of the event in the stream.
    """
    members = {
        "type": "error",
        "sequence_number": sequence_number,
        "code": error.code,
        "message": error.message,
        "param": _CLIENT_FIELDS.get(error.field or "", error.field),
        "request_id": request_id,
    }
    return encode_event(members, name="error")
