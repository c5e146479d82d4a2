"""Where a webhook may go: the public Internet, and private networks that an operator named."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import (
    AddrInfoType,
    ClientConnectorError,
    ClientRequest,
    ClientTimeout,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from moyin.errors import AddressNotAllowed, InvalidRequest

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

__all__ = ["AllowedNetworks", "PublicConnector", "PublicResolver", "check_url"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AllowedNetworks:
    """The addresses that webhooks may reach.

    Args:
        allowed: comma-separated CIDR blocks that are reachable although they are not public.

    Raises:
        ValueError: a block is not one.
    """

    def __init__(self, allowed: str = "") -> None:
        blocks = [block.strip() for block in allowed.split(",") if block.strip()]
        self._allowed = [ipaddress.ip_network(block) for block in blocks]

    def allow(self, address: str) -> bool:
        """Whether the literal IP ``address`` may be called."""
        ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
        if any(ip.version == block.version and ip in block for block in self._allowed):
            return True
        return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)

    def check_literal(self, url: str) -> None:
        """Refuse a URL whose host is a forbidden IP address; host names are checked on use.

        Raises:
            AddressNotAllowed: the address is not public.
        """
        try:
            # As the client will read it: full-width and circled digits are digits to it, too.
            allowed = self.allow(URL(url).raw_host or "")
        except ValueError:
            return
        if not allowed:
            raise _refused()


class PublicResolver(AbstractResolver):
    """Resolves host names and gives out allowed addresses only.

    The connection goes to the very addresses that were checked here, so a name that changes its
    mind between check and use (DNS rebinding) gains nothing.
    """

    def __init__(self, networks: AllowedNetworks, inner: AbstractResolver | None = None) -> None:
        self._networks = networks
        self._inner = inner or ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Like the wrapped resolver.

        Raises:
            AddressNotAllowed: one of the addresses is not public.
            OSError: there is no such host, or no host can be called that.
        """
        try:
            found = await self._inner.resolve(host, port, family)  # type: ignore[arg-type]
        except UnicodeError as error:
            raise OSError("no host can have this name") from error
        if not all(self._networks.allow(result["host"]) for result in found):
            raise _refused()
        return found

    async def close(self) -> None:
        await self._inner.close()


class PublicConnector(TCPConnector):
    """Connects to allowed addresses only, however a URL spells them.

    Every socket is checked against the address that it is for: an address in a URL never gets to
    the resolver.

    Args:
        limit: connections at a time.
    """

    def __init__(self, networks: AllowedNetworks, *, limit: int) -> None:
        def checked(info: AddrInfoType) -> socket.socket:
            family, kind, protocol, _, address = info
            if not networks.allow(str(address[0])):
                raise _ForbiddenError
            return socket.socket(family, kind, protocol)

        super().__init__(
            resolver=PublicResolver(networks),
            socket_factory=checked,
            use_dns_cache=False,
            limit=limit,
            force_close=True,
        )

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 (aiohttp's own)
    ) -> Connection:
        """Like any connector.

        Raises:
            AddressNotAllowed: the address is not public, or one of the name's is not.
        """
        try:
            return await super().connect(req, traces, timeout)
        except ClientConnectorError as error:
            if isinstance(error.os_error, _ForbiddenError):
                raise _refused() from None
            raise


class _ForbiddenError(OSError):
    """What aiohttp takes from the making of a socket; anything else breaks its race of families."""


def check_url(url: str, *, field: str) -> None:
    """Refuse what can't be a webhook by its shape.

    Raises:
        InvalidRequest: not an absolute http(s) URL with a host, or it carries a password.
    """
    try:
        parts = urlsplit(url)
        host = URL(url).raw_host or ""
        # A label that is empty or has more than 63 characters raises here, as it would on use.
        host.encode("idna")
        usable = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(ord(character) <= 0x20 for character in url) or "\\" in url:
        raise InvalidRequest(f"{field} must be an absolute http or https URL", field=field)
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(f"{field} must not carry a user name or password", field=field)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only wraps it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _refused() -> AddressNotAllowed:
    # The address itself stays inside: it may be news to the caller what a name resolves to here.
    return AddressNotAllowed("the webhook's address is not public", field="webhook")
