"""Determines the client's address behind proxies."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from moyin.access.gatekeeper.asgi import Scope

__all__ = ["TrustedProxies"]


class TrustedProxies:
    """Trusts ``X-Forwarded-For`` only from proxies that the operator has named.

    Args:
        blocks: comma-separated CIDR blocks of the proxies' addresses.

    Raises:
        ValueError: a block is not a CIDR block.
    """

    def __init__(self, blocks: str = "") -> None:
        names = [block.strip() for block in blocks.split(",") if block.strip()]
        self._blocks = [ipaddress.ip_network(name) for name in names]

    def client(self, scope: Scope) -> str:
        """Return the nearest address that is not a trusted proxy's; empty if it is unknown.

        The gateway's own HAProxy connects from loopback and forwards no address. So without a
        trusted proxy in front, a peer on loopback may be any client.
        """
        peer = (scope.get("client") or ("", 0))[0]
        if not self._blocks:
            return _peer_address(peer)
        forwarded = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for")
        hops = [*(part.strip() for part in forwarded.decode("latin-1").split(",")), peer]
        for hop in reversed(hops):
            try:
                address = ipaddress.ip_address(hop)
            except ValueError:
                return ""
            if not any(address in block for block in self._blocks):
                return "" if address.is_loopback else str(address)
        return ""


@lru_cache(maxsize=1024)
def _peer_address(peer: str) -> str:
    """Return the peer's own address; empty if it is on loopback."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return ""
    return "" if address.is_loopback else str(address)
