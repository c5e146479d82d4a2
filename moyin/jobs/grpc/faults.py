"""Errors as gRPC tells them: a status, and google.rpc details with our code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Protocol

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

__all__ = ["Fault", "StatusContext", "fault_of", "stream_fault", "tell"]

_DOMAIN = "moyin"
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    402: grpc.StatusCode.RESOURCE_EXHAUSTED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    529: grpc.StatusCode.UNAVAILABLE,
}
_OF_CODES = {"invalid_api_key": 401, "insufficient_scope": 403, "rate_limit_exceeded": 429}
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 1_024


class StatusContext(Protocol):
    """As much of a servicer's context as an error needs; Ray Serve's has it too."""

    def invocation_metadata(self) -> Iterable[tuple[str, Any]]: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class Fault(Exception):
    """A call's end that is no answer.

    Attributes:
        code: stable, as in ``moyin.errors``.
        retry_after: seconds, if a retry can help.
    """

    def __init__(
        self,
        status: grpc.StatusCode,
        code: str,
        message: str,
        *,
        request_id: str = "",
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:_MAX_MESSAGE]
        self.request_id = request_id
        self.field = field
        self.retry_after = retry_after

    def details(self) -> status_pb2.Status:
        """The whole error as google.rpc has it."""
        info = error_details_pb2.ErrorInfo(
            reason=self.code, domain=_DOMAIN, metadata={"request_id": self.request_id}
        )
        found: list[Message] = [info]
        if self.request_id:
            found.append(error_details_pb2.RequestInfo(request_id=self.request_id))
        if self.field is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            found.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            delay = Duration(seconds=math.ceil(self.retry_after))
            found.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return status_pb2.Status(
            code=self.status.value[0], message=self.message, details=[_packed(m) for m in found]
        )


def fault_of(status: int, headers: Any, body: bytes) -> Fault:
    """The door's answer with an HTTP ``status`` of 400 or more, in whichever shape its body is."""
    told = _members(body)
    code = told.get("code")
    after = str(headers.get("retry-after", ""))
    return Fault(
        _STATUS.get(status, grpc.StatusCode.INTERNAL),
        code if isinstance(code, str) else "internal_error",
        str(told.get("detail") or told.get("message") or f"the door answered {status}"),
        request_id=str(headers.get("x-request-id", "")),
        field=told.get("field") or told.get("param"),
        retry_after=float(after) if after.isdecimal() and len(after) < 6 else None,
    )


def stream_fault(status: int, headers: Any, body: bytes) -> Fault:
    """The error event that ended a stream. ``status`` is that of a stream that broke; a caller who
    lost the right to it gets the status that a new request would get."""
    return fault_of(_OF_CODES.get(_members(body).get("code", ""), status), headers, body)


def tell(context: StatusContext, fault: Fault) -> None:
    """Make ``fault`` the end of the call; return normally afterwards.

    Raising would lose the details: Ray Serve passes on a raised error's status and text alone.
    """
    if not fault.request_id:
        # It never got as far as the door, which would have named it.
        fault.request_id = str(dict(context.invocation_metadata()).get("x-request-id", ""))
    context.set_code(fault.status)
    context.set_details(fault.message)
    trailers: list[tuple[str, str | bytes]] = [(_DETAILS_KEY, fault.details().SerializeToString())]
    if fault.request_id:
        trailers.append(("x-request-id", fault.request_id))
    context.set_trailing_metadata(trailers)


def _members(body: bytes) -> dict[str, Any]:
    """Of problem details, or of the ``error`` object in OpenAI's shape."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    if isinstance(told, dict) and isinstance(told.get("error"), dict):
        told = told["error"]
    return told if isinstance(told, dict) else {}


def _packed(message: Message) -> Packed:
    packed = Packed()
    packed.Pack(message)
    return packed
