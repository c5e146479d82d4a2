from __future__ import annotations

import jwt
import pytest

from moyin.access.accounts.attempt_limits import DeviceTokens
from moyin.access.gatekeeper.identity import create_service_token
from moyin.access.gatekeeper.observation import redact

KEY = b"0123456789abcdef0123456789abcdef"


def test_a_device_token_is_valid_for_its_account_only() -> None:
    devices = DeviceTokens(KEY)
    token, other_token = devices.issue_token("usr_ann"), devices.issue_token("usr_ann")
    assert devices.get_device_id(token, "usr_ann") not in (
        None,
        devices.get_device_id(other_token, "usr_ann"),
    )
    assert devices.get_device_id(token, "usr_bob") is None
    assert token not in redact(f"a log with {token}")


@pytest.mark.parametrize(
    "token",
    [
        None, "", "x", "a.b.c",
        DeviceTokens(b"1" * 32).issue_token("usr_ann"),
        create_service_token(KEY, "usr_ann", "jobs"),
        jwt.encode({"aud": "moyin-device", "sub": "usr_ann", "jti": "d", "exp": 1}, KEY, "HS256"),
        jwt.encode({"aud": "moyin-device", "sub": "usr_ann", "jti": "d"}, KEY, "HS256"),
    ],
)  # fmt: skip
def test_invalid_device_tokens_are_ignored(token: str | None) -> None:
    assert DeviceTokens(KEY).get_device_id(token, "usr_ann") is None
