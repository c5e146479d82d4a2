from __future__ import annotations

import pytest

from moyin.access.gatekeeper.asgi import TrustedProxies


@pytest.mark.parametrize(
    ("trusted_blocks", "peer", "forwarded_for", "client_address"),
    [
        ("", "203.0.113.9", None, "203.0.113.9"),
        # The gateway's own proxy: headers of the client are ignored.
        ("", "127.0.0.1", "198.51.100.1", ""),
        ("", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("127.0.0.0/8", "127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.0/8", "127.0.0.1", None, ""),
        # Only the nearest untrusted hop is known.
        ("127.0.0.0/8", "127.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.0/8, 10.0.0.0/8", "127.0.0.1", "198.51.100.1, 10.1.2.3", "198.51.100.1"),
        ("127.0.0.0/8", "127.0.0.1", "198.51.100.1, unknown", ""),
        ("::1/128", "::1", "2001:db8::1", "2001:db8::1"),
        ("", "", None, ""),
    ],
)
def test_the_client_is_the_nearest_untrusted_address(
    trusted_blocks: str, peer: str, forwarded_for: str | None, client_address: str
) -> None:
    headers = [] if forwarded_for is None else [(b"x-forwarded-for", forwarded_for.encode())]
    scope = {"client": (peer, 1) if peer else None, "headers": headers}
    assert TrustedProxies(trusted_blocks).get_client_address(scope) == client_address


def test_several_forwarded_headers_are_joined() -> None:
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"198.51.100.1")]
    scope = {"client": ("127.0.0.1", 1), "headers": headers}
    assert TrustedProxies("127.0.0.0/8").get_client_address(scope) == "198.51.100.1"


def test_an_invalid_address_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        TrustedProxies("localhost")
