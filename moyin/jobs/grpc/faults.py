"""Renders errors for gRPC as a status with google.rpc details that contain the stable code."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from moyin.client.errors import RequestRefused

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
_STATUS_OF_CODE = {"invalid_api_key": 401, "insufficient_scope": 403, "rate_limit_exceeded": 429}
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 1_024
Metadata = Iterable[tuple[str, Any]]
Q = TypeVar("Q")
M = TypeVar("M")


class StatusContext(Protocol):
    """The methods that set an error in the context of a gRPC servicer or of Ray Serve."""

    def invocation_metadata(self) -> Metadata: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class Fault(Exception):
    """The error of a gRPC call.

    Attributes:
        status: the gRPC status.
        code: the stable code of the error, as in ``moyin.errors``.
        request_id: the id under which the gateway logged the request; empty if there was none.
        field: the path of the invalid field, if any.
        retry_after: seconds after which a retry may succeed; None if a retry cannot help.
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

    def to_status(self) -> status_pb2.Status:
        """Return the error as a google.rpc status with its details."""
        error_info = error_details_pb2.ErrorInfo(
            reason=self.code, domain=_DOMAIN, metadata={"request_id": self.request_id}
        )
        details: list[Message] = [error_info]
        if self.request_id:
            details.append(error_details_pb2.RequestInfo(request_id=self.request_id))
        if self.field is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            delay = Duration(seconds=math.ceil(self.retry_after))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return status_pb2.Status(
            code=self.status.value[0], message=self.message, details=[_pack_any(m) for m in details]
        )


def new_field_fault(field: str, problem: str, code: str = "invalid_request") -> Fault:
    """Create the fault for an invalid field of a gRPC request."""
    return Fault(grpc.StatusCode.INVALID_ARGUMENT, code, f"{field} {problem}", field=field)


def to_fault(refusal: RequestRefused, status: int | None = None) -> Fault:
    """Convert an error response of the gateway to a fault.

    Args:
        status: the HTTP status from which the gRPC status follows; None takes the status of
            ``refusal``.
    """
    return Fault(
        _STATUS.get(status or refusal.status, grpc.StatusCode.INTERNAL),
        refusal.reported_code or "internal_error",
        refusal.detail,
        request_id=refusal.request_id,
        field=refusal.field,
        retry_after=refusal.retry_after,
    )


def to_stream_fault(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Convert an error event that ended a stream to a fault.

    Args:
        status: the HTTP status to assume. If the caller lost access during the stream, the status
            that belongs to the error's code is used instead.
        headers: the headers of the response with the stream.
        body: the data of the error event.
    """
    refusal = RequestRefused(status, headers, body)
    return to_fault(refusal, _STATUS_OF_CODE.get(refusal.reported_code or ""))


def set_call_error(context: StatusContext, fault: Fault) -> None:
    """Set a call's error, with its details, in the call's context.

    If the error were raised instead, Ray Serve would drop the details.
    """
    if not fault.request_id:
        # The call failed before it reached the gateway, which assigns request ids, so assign one
        # here.
        fault.request_id = str(dict(context.invocation_metadata()).get("x-request-id", ""))
    context.set_code(fault.status)
    context.set_details(fault.message)
    trailers: list[tuple[str, str | bytes]] = [
        (_DETAILS_KEY, fault.to_status().SerializeToString())
    ]
    if fault.request_id:
        trailers.append(("x-request-id", fault.request_id))
    context.set_trailing_metadata(trailers)


async def answer_call(
    call: Callable[[Q, Metadata], Awaitable[M]],
    request: Q,
    context: StatusContext,
    empty_response: M,
) -> M:
    """Return the response to a call.

    If the call raises `Fault`, set its error in ``context`` and return ``empty_response``.
    """
    try:
        return await call(request, context.invocation_metadata())
    except Fault as fault:
        set_call_error(context, fault)
        return empty_response


async def stream_call(
    call: Callable[[Q, Metadata], AsyncGenerator[M, None]], request: Q, context: StatusContext
) -> AsyncGenerator[M, None]:
    """Yield the messages of a call; if it raises `Fault`, set the call's error and end the stream."""
    try:
        async with aclosing(call(request, context.invocation_metadata())) as messages:
            async for message in messages:
                yield message
    except Fault as fault:
        set_call_error(context, fault)


def _pack_any(message: Message) -> Packed:
    packed_message = Packed()
    packed_message.Pack(message)
    return packed_message
