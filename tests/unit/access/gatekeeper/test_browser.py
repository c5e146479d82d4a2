"""Tests the cookies that sign browsers in."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jwt
import pytest

from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.domain.identity import Identity
from moyin.errors import CrossSiteRequest, InvalidKey
from moyin.testing.fakes import StaticAuthenticator

EXPIRES = int(time.time()) + 6 * 3600
TOKEN = jwt.encode({"exp": EXPIRES}, b"0" * 32, "HS256")
INTERNAL = jwt.encode({"exp": EXPIRES, "iss": "jobs"}, b"0" * 32, "HS256")


ADA = Identity(owner="ada", key_id="k")
KNOWN = StaticAuthenticator({"good": ADA, TOKEN: ADA, INTERNAL: replace(ADA, service="jobs")})
SESSIONS = BrowserSessions(KNOWN, "/comfy/")


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "scheme": "http", "headers": pairs}


async def test_the_key_cookie_is_hidden_from_scripts_and_other_paths() -> None:
    identity, cookie = await SESSIONS.sign_in(scope(), "good")
    assert identity.owner == "ada"
    assert cookie.split("; ") == [
        "moyin_session=good", "Path=/comfy/", "Max-Age=2592000", "HttpOnly", "SameSite=Strict",
    ]  # fmt: skip
    _, behind_tls = await SESSIONS.sign_in(scope(x_forwarded_proto="https"), "good")
    assert behind_tls.endswith("; Secure")


async def test_a_token_cookie_expires_with_the_token() -> None:
    before = time.time()
    _, cookie = await SESSIONS.sign_in(scope(), TOKEN)
    age = int(cookie.partition("Max-Age=")[2].partition(";")[0])
    assert EXPIRES - time.time() - 1 <= age <= EXPIRES - before


@pytest.mark.parametrize(
    "secret", ["bad", "", "good\r\nset-cookie: x=1", "good; a=1", "ü", INTERNAL]
)
async def test_invalid_keys_get_no_cookie(secret: str) -> None:
    with pytest.raises(InvalidKey):
        await SESSIONS.sign_in(scope(), secret)


async def test_pages_of_other_sites_cannot_sign_in_or_out() -> None:
    foreign = scope(host="gateway.example", origin="http://evil.example")
    with pytest.raises(CrossSiteRequest):
        await SESSIONS.sign_in(foreign, "good")
    with pytest.raises(CrossSiteRequest):
        SESSIONS.sign_out(foreign)


async def test_signing_out_deletes_the_cookie() -> None:
    assert "moyin_session=; Path=/comfy/; Max-Age=0;" in SESSIONS.sign_out(scope())


async def test_a_cookie_has_an_identity_while_its_key_is_valid() -> None:
    known = await SESSIONS.find_identity(scope(cookie="moyin_session=good"))
    assert known is not None and known.owner == "ada"
    assert await SESSIONS.find_identity(scope(cookie="moyin_session=bad")) is None
    assert await SESSIONS.find_identity(scope()) is None
