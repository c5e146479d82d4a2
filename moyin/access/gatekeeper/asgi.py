"""Defines the ASGI types of the gatekeeper, and reads headers and client addresses from ASGI scopes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def get_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with the lower-case ``name``, or None if the request has none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


class TrustedProxies:
    """Reads a client's IP address, from ``X-Forwarded-For`` if a trusted proxy has sent it.

    Args:
        blocks: comma-separated CIDR blocks of the proxies' IP addresses; other addresses are not
            trusted to send the header.

    Raises:
        ValueError: a block is not a CIDR block.
    """

    def __init__(self, blocks: str = "") -> None:
        block_texts = [block.strip() for block in blocks.split(",") if block.strip()]
        self._blocks = [ipaddress.ip_network(block_text) for block_text in block_texts]

    def get_client_address(self, scope: Scope) -> str:
        """Return the nearest IP address that is not a trusted proxy's, or "" if it is unknown.

        The gateway's own HAProxy connects from loopback and forwards no address. Without a trusted
        proxy, the address of a peer on loopback is therefore unknown: it may be any client.
        """
        peer = (scope.get("client") or ("", 0))[0]
        if not self._blocks:
            return _get_peer_address(peer)
        forwarded_addresses = b",".join(
            value for key, value in scope["headers"] if key == b"x-forwarded-for"
        )
        addresses = [
            *(
                address_part.strip()
                for address_part in forwarded_addresses.decode("latin-1").split(",")
            ),
            peer,
        ]
        for address_text in reversed(addresses):
            try:
                address = ipaddress.ip_address(address_text)
            except ValueError:
                return ""
            if not any(address in block for block in self._blocks):
                return "" if address.is_loopback else str(address)
        return ""


@lru_cache(maxsize=1024)
def _get_peer_address(peer: str) -> str:
    """Return the address of a TCP peer, or "" if the peer is on loopback or has no IP address."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return ""
    return "" if address.is_loopback else str(address)
