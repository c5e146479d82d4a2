"""The limit on request bodies, kept on the stream: a body is never buffered to be measured."""

from __future__ import annotations

import asyncio

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, header
from moyin.errors import BodyTooLarge, InvalidRequest, MoyinError

__all__ = ["drain", "has_body", "limit_body", "too_large", "wants_go_ahead"]

# What is left of a body that nobody wants is read for so long, and no more than so much of it, so that
# an ordinary client can read the answer and use the connection again.
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 256 * 1024


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


def has_body(scope: Scope) -> bool:
    """Whether the head of the request announces a body."""
    if header(scope, b"transfer-encoding") is not None:
        return True
    return header(scope, b"content-length") not in (None, "0")


def wants_go_ahead(scope: Scope) -> bool:
    """Whether the client sends its body only once it is told to (``Expect: 100-continue``)."""
    return header(scope, b"expect") is not None


async def drain(receive: Receive) -> bool:
    """Read the rest of a body that nobody wants; False: it did not come to its end in time.

    A connection whose request is half sent can't be used again. It would stay open for as long as the
    client takes, so the caller must close it.
    """
    came = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while came <= _DRAIN_BYTES:
                message = await receive()
                if not message.get("more_body", False):
                    return True
                came += len(message.get("body", b""))
    except (TimeoutError, MoyinError):
        # It does not come, or it is larger than a body may be.
        return False
    return False
