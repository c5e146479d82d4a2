from __future__ import annotations

import socket
from types import SimpleNamespace

import aiohttp
import psutil
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from moyin.errors import AddressNotAllowed, InvalidRequest
from moyin.http.public_addresses import AllowedNetworks, PublicConnector, PublicResolver, check_url

INSIDE = [
    "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1",
    "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "fec0::1", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:7f00:1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"]


class FakeResolver(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self._addresses
        ]

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("address", INSIDE)
def test_private_address_is_refused(address: str) -> None:
    assert not AllowedNetworks().allows(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_address_is_allowed(address: str) -> None:
    assert AllowedNetworks().allows(address)


def test_public_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(family=socket.AF_INET6, address="2606:4700::7%eth0")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [entry]})
    assert not AllowedNetworks().allows("2606:4700::7")
    assert AllowedNetworks().allows("2606:4700::8")
    assert AllowedNetworks("2606:4700::7/128").allows("2606:4700::7")


def test_operator_can_allow_a_private_network() -> None:
    networks = AllowedNetworks(" 10.0.0.0/8, fd00::/8 ")
    assert networks.allows("10.9.9.9")
    assert networks.allows("fd00::1")
    assert networks.allows("::ffff:10.0.0.1")
    assert not networks.allows("192.168.0.1")


def test_invalid_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        AllowedNetworks("ten")


# What the client reads as digits and dots, though it is written otherwise; full-width ones are
# escaped here.
DISGUISED = [
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "①②⑦.0.0.1",
    "127。0。0。1",
    "①⑥⑨.②⑤④.①⑥⑨.②⑤④",
    "\uff11\uff10.0.0.1",
]


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1:8080", "[::ffff:10.0.0.1]:1", *DISGUISED])
def test_url_with_private_address_is_refused(host: str) -> None:
    with pytest.raises(AddressNotAllowed):
        AllowedNetworks().check_literal_address(f"http://{host}/x")


def test_host_names_are_not_checked_as_literals() -> None:
    AllowedNetworks().check_literal_address("http://localhost/x")


async def test_resolver_returns_public_addresses() -> None:
    resolver = PublicResolver(AllowedNetworks(), FakeResolver("1.1.1.1", "8.8.8.8"))
    assert [r["host"] for r in await resolver.resolve("x", 80)] == ["1.1.1.1", "8.8.8.8"]


async def test_host_with_one_private_address_is_refused() -> None:
    with pytest.raises(AddressNotAllowed) as exc_info:
        await PublicResolver(AllowedNetworks(), FakeResolver("1.1.1.1", "10.0.0.1")).resolve(
            "x", 80
        )
    assert "10.0.0.1" not in str(exc_info.value)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "localhost"])
async def test_unusual_spellings_of_loopback_are_refused(host: str) -> None:
    resolver = PublicResolver(AllowedNetworks())
    with pytest.raises((AddressNotAllowed, OSError)):
        await resolver.resolve(host, 80)
    await resolver.close()


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_invalid_host_name_is_not_found(host: str) -> None:
    resolver = PublicResolver(AllowedNetworks())
    with pytest.raises(OSError, match="name"):
        await resolver.resolve(host, 80)
    await resolver.close()


@pytest.mark.parametrize(
    "resolved_addresses", [["127.0.0.1"], ["127.0.0.1", "::1"], ["::1", "10.0.0.1"]]
)
@pytest.mark.parametrize("host", ["127.0.0.1", "name.example", *DISGUISED])
async def test_no_socket_is_created_for_a_private_address(
    host: str, resolved_addresses: list[str]
) -> None:
    connector = PublicConnector(AllowedNetworks(), limit=1)
    # Nothing before the socket helps here.
    connector._resolver = FakeResolver(*resolved_addresses)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(AddressNotAllowed):
            await session.get(f"http://{host}:9/")


async def test_closed_public_port_is_a_connection_error(unused_tcp_port: int) -> None:
    connector = PublicConnector(AllowedNetworks("127.0.0.0/8"), limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{unused_tcp_port}/")


@pytest.mark.parametrize(
    "url",
    ["", "x", "//x.example", "ftp://x.example", "file:///etc/passwd", "http://", "http:///x",
     "http://u@x.example", "http://u:p@x.example", "http://x.example:99999", "http://a b",
     "http://x\\y", "http://x\n", "javascript:alert(1)", "http://[::1",
     "http://a..b/", "http://..", "http://" + "a" * 64 + ".example/"],
)  # fmt: skip
def test_invalid_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        check_url(url, field="webhook")
    assert exc_info.value.field == "webhook"


@pytest.mark.parametrize(
    "url",
    ["http://x", "https://x.example:8443/a?b=c", "HTTPS://X", "http://x.example./",
     "http://bücher.example/", "http://" + "a" * 63 + ".example"],
)  # fmt: skip
def test_valid_urls_are_accepted(url: str) -> None:
    check_url(url, field="webhook")
