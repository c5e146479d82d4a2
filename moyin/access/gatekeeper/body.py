"""Limits the size of request bodies while they are received, without buffering them."""

from __future__ import annotations

import asyncio

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, get_header
from moyin.errors import BodyTooLarge, InvalidRequest, MoyinError

# Limits on reading a body that the app left unread, so that ordinary clients can finish sending,
# read the response and reuse the connection.
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 256 * 1024


def new_too_large_error(max_bytes: int) -> BodyTooLarge:
    """Return the error for a body of more than ``max_bytes`` bytes."""
    return BodyTooLarge(
        f"the request body must not exceed {max_bytes} bytes", details={"max_body_bytes": max_bytes}
    )


def limit_body(scope: Scope, receive: Receive, max_bytes: int) -> Receive:
    """Return an ASGI ``receive`` that raises `BodyTooLarge` after more than ``max_bytes`` bytes.

    Raises:
        BodyTooLarge: the header Content-Length exceeds the limit.
        InvalidRequest: the header Content-Length is not a number.
    """
    content_length = get_header(scope, b"content-length")
    if content_length is not None:
        if not content_length.isdecimal():
            raise InvalidRequest("Content-Length must be a decimal number", field="Content-Length")
        if int(content_length) > max_bytes:
            raise new_too_large_error(max_bytes)
        # The server enforces Content-Length, so the bytes need not be counted.
        return receive
    received_bytes = 0

    async def receive_counted() -> Message:
        nonlocal received_bytes
        message = await receive()
        if message["type"] == "http.request":
            received_bytes += len(message.get("body", b""))
            if received_bytes > max_bytes:
                raise new_too_large_error(max_bytes)
        return message

    return receive_counted


def has_body(scope: Scope) -> bool:
    """Return True if the request's headers announce a body."""
    if get_header(scope, b"transfer-encoding") is not None:
        return True
    return get_header(scope, b"content-length") not in (None, "0")


def expects_continue(scope: Scope) -> bool:
    """Return True if the client waits for ``100 Continue`` before it sends the body."""
    return get_header(scope, b"expect") is not None


async def drain_body(receive: Receive) -> bool:
    """Discard the rest of a body and return True, or False if it did not end in time.

    If the result is False, the caller must close the connection, which cannot be reused after half
    a request and would stay open until the client has sent everything.
    """
    received_bytes = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while received_bytes <= _DRAIN_BYTES:
                message = await receive()
                if not message.get("more_body", False):
                    return True
                received_bytes += len(message.get("body", b""))
    except (TimeoutError, MoyinError):
        # The body did not arrive in time, or exceeds its limit.
        return False
    return False
