"""Defines `MoyinError`, and creates it from error responses and failed connections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

CONNECTION_FAILED = "connection_failed"
# Members of problem details that are attributes of the error, or only repeat the request.
_KNOWN = frozenset(
    {
        "type", "title", "status", "detail", "instance", "code", "field", "param", "request_id",
        "message",
    }
)  # fmt: skip


class MoyinError(Exception):
    """Reports that a request, a stream or a webhook failed; its text says why.

    Attributes:
        status: the HTTP status; None if there was no response.
        code: a stable code, one of docs/reference/errors.md. The client itself adds
            `connection_failed` (no complete response arrived), `request_failed` (the request could
            not be sent), `http_error` (the response is not Moyin's), `malformed_response` and
            `invalid_webhook`.
        field: the invalid member, parameter or header, if there is one.
        request_id: the id by which the operator finds the request in the logs.
        retry_after: the seconds for which the gateway asks the client to wait.
        details: further members of the error, such as `node_errors`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "http_error",
        field: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.request_id = request_id
        self.retry_after = retry_after
        self.details = dict(details or {})


def build_error(status: int, headers: Mapping[str, str], body: bytes) -> MoyinError:
    """Return the error that an HTTP response reports, in problem details or in OpenAI's format.

    ``headers`` must be a mapping that ignores the case of names.
    """
    problem = _parse_problem(body)
    retry_after = headers.get("retry-after")
    return MoyinError(
        _get_text(problem, "detail", "message", "title") or f"HTTP status {status}",
        status=status,
        code=_get_text(problem, "code") or "http_error",
        field=_get_text(problem, "field", "param"),
        request_id=_get_text(problem, "request_id") or headers.get("x-request-id"),
        retry_after=None if retry_after is None else parse_retry_after(retry_after),
        details={name: value for name, value in problem.items() if name not in _KNOWN},
    )


def build_event_error(data: Mapping[str, Any]) -> MoyinError:
    """Return the error that the event `error` of a stream reports."""
    return MoyinError(
        _get_text(data, "message") or "the stream ended with an error",
        code=_get_text(data, "code") or "http_error",
        request_id=_get_text(data, "request_id"),
        details={name: value for name, value in data.items() if name not in _KNOWN},
    )


def parse_retry_after(value: str, now: datetime | None = None) -> float | None:
    """Return the seconds in a ``Retry-After`` header, from a number or a date; None if invalid."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise a MoyinError instead of any error of httpx in the block."""
    try:
        yield
    except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
        text = str(error) or type(error).__name__
        raise MoyinError(f"the connection failed: {text}", code=CONNECTION_FAILED) from error
    except httpx.HTTPError as error:
        raise MoyinError(f"the request failed: {error}", code="request_failed") from error


def _parse_problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    if isinstance(problem, dict):
        error = problem.get("error")
        return error if isinstance(error, dict) else problem
    return {}


def _get_text(members: Mapping[str, Any], *names: str) -> str | None:
    values = (members.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), None)
