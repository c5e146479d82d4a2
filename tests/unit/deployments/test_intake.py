"""Tests that the address that the intake reports for a source contains no secret."""

from __future__ import annotations

import pytest

from deployments.intake.deployment import find_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://moyin:secret@rabbit.example:5672/studio", "rabbit.example:5672"),
        ("rediss://valkey.example/0", "valkey.example"),
        ("redis://:secret@[::1]:6379/0", "[::1]:6379"),
        ("redis://valkey.example:6379/0?password=secret", "valkey.example:6379"),
        # No part of a password may be taken for the host.
        ("redis://ann:sec/ret@valkey.example:6379/0", None),
        ("redis://ann:1/ret@valkey.example:6379/0", None),
        ("redis://ann:sec#ret@valkey.example:6379/0", None),
        ("redis://valkey.example:6379/0?password=sec@ret", None),
        ("redis://valkey.example:port/0", None),
        ("unix:///run/valkey.sock", None),
        ("", None),
    ],
)
def test_an_address_has_no_secret(url: str, address: str | None) -> None:
    assert find_address(url) == address
