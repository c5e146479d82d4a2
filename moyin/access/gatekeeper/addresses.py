"""The client's address, as far as it can be known behind proxies."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from moyin.access.gatekeeper.asgi import Scope

__all__ = ["TrustedProxies"]


class TrustedProxies:
    """Believes ``X-Forwarded-For`` from proxies that an operator named, and from nobody else.

    Args:
        blocks: comma-separated CIDR blocks.

    Raises:
        ValueError: a block is not one.
    """

    def __init__(self, blocks: str = "") -> None:
        names = [block.strip() for block in blocks.split(",") if block.strip()]
        self._blocks = [ipaddress.ip_network(name) for name in names]

    def client(self, scope: Scope) -> str:
        """The nearest address that is not a trusted proxy's; empty when nobody can tell.

        The door's own proxy is on loopback and forwards no address: without a trusted proxy in
        front, a peer on loopback may be anybody.
        """
        peer = (scope.get("client") or ("", 0))[0]
        if not self._blocks:
            return _alone(peer)
        given = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for")
        hops = [*(part.strip() for part in given.decode("latin-1").split(",")), peer]
        for hop in reversed(hops):
            try:
                address = ipaddress.ip_address(hop)
            except ValueError:
                return ""
            if not any(address in block for block in self._blocks):
                return "" if address.is_loopback else str(address)
        return ""


@lru_cache(maxsize=1024)
def _alone(peer: str) -> str:
    """The peer itself, where nobody in front is believed."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return ""
    return "" if address.is_loopback else str(address)
