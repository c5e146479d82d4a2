"""Restricts outgoing connections to public addresses and allowed private networks.

Clients choose the URLs of webhooks and pictures, which must not lead into the studio's network.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
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

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The third quarter of an ISATAP address (RFC 5214), whose last quarter is an IPv4 address.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


class AllowedNetworks:
    """Allows connections to public addresses and to some private networks.

    A public address of this machine itself counts as private: what listens there may be behind a
    firewall, which does not see the machine's connections to itself.

    Args:
        cidr_blocks: the allowed private networks, separated by commas.
    """

    def __init__(self, cidr_blocks: str = "") -> None:
        blocks = [block.strip() for block in cidr_blocks.split(",") if block.strip()]
        self._allowed = [ipaddress.ip_network(block) for block in blocks]

    def allows(self, address: str) -> bool:
        """Return True if connections to the IP address are allowed."""
        ip = _unwrap_ipv4(ipaddress.ip_address(address.partition("%")[0]))
        if any(ip.version == block.version and ip in block for block in self._allowed):
            return True
        return ip.is_global and not (
            ip.is_multicast
            or ip.is_reserved
            or ip.is_unspecified
            or (ip.version == 6 and ip.is_site_local)
            or _is_own(ip)
        )

    def check_literal_address(self, url: str) -> None:
        """Raise AddressNotAllowed if the host in the URL is an IP address that is not allowed."""
        try:
            # aiohttp parses URLs with yarl, which also accepts full-width and circled digits.
            is_allowed = self.allows(URL(url).raw_host or "")
        except ValueError:
            return
        if not is_allowed:
            raise _new_not_allowed_error()


class PublicResolver(AbstractResolver):
    """Resolves host names to allowed addresses only.

    aiohttp connects to the very addresses that were checked here, so that DNS rebinding between
    check and use has no effect.
    """

    def __init__(
        self, networks: AllowedNetworks, inner_resolver: AbstractResolver | None = None
    ) -> None:
        self._networks = networks
        self._inner = inner_resolver or ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Resolve a host name with the wrapped resolver.

        Raises:
            AddressNotAllowed: one of the host's addresses is not allowed.
            OSError: the host does not exist, or its name is invalid.
        """
        try:
            results = await self._inner.resolve(host, port, family)  # type: ignore[arg-type]
        except UnicodeError as error:
            raise OSError(
                f"the host name {host[:64]!r} must have labels of 1 to 63 characters"
            ) from error
        if not all(self._networks.allows(result["host"]) for result in results):
            raise _new_not_allowed_error()
        return results

    async def close(self) -> None:
        await self._inner.close()


class PublicConnector(TCPConnector):
    """An aiohttp connector that connects to allowed addresses only.

    The connector checks the address of every socket, because a literal address in a URL bypasses
    the resolver.

    Args:
        limit: the maximum number of concurrent connections.
    """

    def __init__(self, networks: AllowedNetworks, *, limit: int) -> None:
        def create_checked_socket(info: AddrInfoType) -> socket.socket:
            family, kind, protocol, _, address = info
            if not networks.allows(str(address[0])):
                raise _ForbiddenError
            return socket.socket(family, kind, protocol)

        super().__init__(
            resolver=PublicResolver(networks),
            socket_factory=create_checked_socket,
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
        """Return a connection to a request's host.

        Raises:
            AddressNotAllowed: one of the host's addresses is not allowed.
        """
        try:
            return await super().connect(req, traces, timeout)
        except ClientConnectorError as error:
            if isinstance(error.os_error, _ForbiddenError):
                raise _new_not_allowed_error() from None
            raise


class _ForbiddenError(OSError):
    """Reports a forbidden address to aiohttp, which expects an OSError from a socket factory."""


def check_url(url: str, *, field: str) -> None:
    """Check a webhook's URL; raise InvalidRequest if it is not http(s) or contains credentials."""
    try:
        url_parts = urlsplit(url)
        host = URL(url).raw_host or ""
        # Raises for labels that are empty or longer than 63 characters.
        host.encode("idna")
        is_valid = url_parts.scheme in ("http", "https") and bool(host) and url_parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or any(ord(character) <= 0x20 for character in url) or "\\" in url:
        raise InvalidRequest(
            f"{field} must be an absolute http or https URL, such as https://example.com/hook",
            field=field,
        )
    if url_parts.username is not None or url_parts.password is not None:
        raise InvalidRequest(f"{field} must not contain a user name or password", field=field)


def _unwrap_ipv4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _is_own(address: Address) -> bool:
    """Return True if a network interface of this machine has the address."""
    return any(
        ipaddress.ip_address(entry.address.partition("%")[0]) == address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )


def _new_not_allowed_error() -> AddressNotAllowed:
    # The message omits the address, because internal name resolution must not leak.
    return AddressNotAllowed(
        "webhook must resolve to public addresses only: private networks are not allowed",
        field="webhook",
    )
