"""Renders errors as RFC 9457 problem details, and maps error types to HTTP statuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from moyin import errors
from moyin.errors import AccessError, LimitExceeded, MoyinError, UnsupportedContentEncoding

# Headers of every response of Moyin, which forbid content sniffing, framing and referrers.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBody:
    """An error response that is ready to be sent: its status, its body and its headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


# Every protocol has a function that renders (error, request id, path) as a response, and one that
# renders (error, request id, path, the stream's media type) as the last event of a stream. The
# latter returns None if the protocol has no such event; then the connection is closed.
ErrorRenderer = Callable[[MoyinError, str, str], ErrorBody]
StreamErrorRenderer = Callable[[MoyinError, str, str, str], bytes | None]


def render_problem_details(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render an error as RFC 9457 problem details, with ``code``, ``request_id`` and ``field``.

    Args:
        path: the path of the request, which becomes the member ``instance``.
    """
    status = get_http_status(error)
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "instance": path,
        "code": error.code,
        "request_id": request_id,
    }
    if error.field is not None:
        body["field"] = error.field
    # The standard members come last, so that details can't replace them.
    content = {**error.details, **body}
    headers = {"content-type": "application/problem+json", **build_error_headers(error)}
    return ErrorBody(status=status, body=json.dumps(content).encode(), headers=headers)


def render_error_event(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render an error as an ``error`` event for a stream of server-sent events that fails midway.

    Args:
        path: the path of the request; unused, but the gatekeeper calls the functions of all apps
            with the same arguments.
        media_type: the media type of the stream.

    Returns:
        The bytes of the event; None if ``media_type`` is not that of server-sent events.
    """
    if media_type != "text/event-stream":
        return None
    data = {"code": error.code, "message": error.message, "request_id": request_id}
    return f"event: error\ndata: {json.dumps(data)}\n\n".encode()


def build_error_headers(error: MoyinError) -> dict[str, str]:
    """Return the headers of an error response, such as Retry-After; all API formats share them."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, LimitExceeded):
        headers.update(error.headers)
    if isinstance(error, UnsupportedContentEncoding) and "accepted" in error.details:
        headers["accept-encoding"] = ", ".join(error.details["accepted"])
    if isinstance(error, AccessError):
        headers["www-authenticate"] = 'Bearer realm="moyin"'
    return headers


_STATUS: Mapping[type[errors.MoyinError], int] = {
    errors.RequestError: 400,
    errors.BodyTooLarge: 413,
    errors.GraphTooLarge: 413,
    errors.UnsupportedContentEncoding: 415,
    errors.PictureTooLarge: 413,
    errors.ArchiveTooLarge: 413,
    errors.UserStorageFull: 413,
    errors.FileStorageFull: 413,
    errors.BodyTooSlow: 408,
    errors.MissingKey: 401,
    errors.InvalidKey: 401,
    errors.InvalidCredentials: 401,
    errors.InvalidToken: 401,
    errors.AccessError: 403,
    errors.BudgetExceeded: 402,
    errors.LimitExceeded: 429,
    errors.NotFound: 404,
    errors.IdempotencyMismatch: 422,
    errors.Conflict: 409,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.BackendRejected: 400,
    errors.BackendTimeout: 504,
    # Not 5xx, because clients would retry and pay for the model's output again.
    errors.InvalidToolCall: 422,
    errors.BackendError: 502,
    errors.StepError: 502,
    errors.MoyinError: 500,
}


def get_http_status(error: errors.MoyinError) -> int:
    """Return the HTTP status of an error's class, or of its nearest base class with a status."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
