"""The limit on request bodies, kept on the stream: a body is never buffered to be measured."""

from __future__ import annotations

from moyin.errors import BodyTooLarge, InvalidRequest
from moyin.gatekeeper.asgi import Message, Receive, Scope, header

__all__ = ["limit_body", "too_large"]


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", details={"max_body_bytes": limit})


def limit_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """``receive`` that raises when more than ``limit`` bytes come.

    Raises:
        BodyTooLarge: at once when Content-Length says so.
        InvalidRequest: Content-Length is not a number.
    """
    declared = header(scope, b"content-length")
    if declared is not None:
        if not declared.isdecimal():
            raise InvalidRequest("Content-Length must be a number", field="Content-Length")
        if int(declared) > limit:
            raise too_large(limit)
        # The server enforces the declared length, so counting would be work for nothing.
        return receive
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise too_large(limit)
        return message

    return counted
