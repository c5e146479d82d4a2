"""Taking a request's body from the client."""

from __future__ import annotations

from moyin.access.gatekeeper.asgi import Message, Receive

__all__ = ["ClientLeft", "next_part", "whole_body"]


class ClientLeft(Exception):
    """The client went away before its request was complete."""


async def next_part(receive: Receive) -> Message:
    """The next message of the body.

    Raises:
        ClientLeft: there is none.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message


async def whole_body(receive: Receive) -> bytes:
    """All of it; the gatekeeper bounds it."""
    parts = []
    while True:
        message = await next_part(receive)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
