"""Tests the cookies that authenticate browsers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jwt
import pytest

from moyin.access.gatekeeper.browser import BrowserSessions, build_cookies
from moyin.domain.identity import Identity
from moyin.errors import CrossSiteRequest, InvalidKey
from moyin.testing.fakes import StaticAuthenticator

EXPIRES = int(time.time()) + 6 * 3600
TOKEN = jwt.encode({"exp": EXPIRES}, b"0" * 32, "HS256")
INTERNAL = jwt.encode({"exp": EXPIRES, "iss": "jobs"}, b"0" * 32, "HS256")


ADA = Identity(owner="ada", key_id="k")
KNOWN = StaticAuthenticator(
    {
        "good": ADA,
        TOKEN: replace(ADA, key_id="ses_1", user="usr_1"),
        INTERNAL: replace(ADA, service="jobs"),
    }
)
NO_REFRESH = "moyin_refresh=; Path=/accounts/session; Max-Age=0; HttpOnly; SameSite=Strict"
NO_FORMER = "moyin_session=; Path=/comfy/; Max-Age=0; HttpOnly; SameSite=Strict"


class EndedSessions:
    """A stand-in for the session service that records the ids of ended sessions."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def end(self, session: str) -> None:
        self.ids.append(session)


@pytest.fixture
def ended_sessions() -> EndedSessions:
    return EndedSessions()


@pytest.fixture
def sessions(ended_sessions: EndedSessions) -> BrowserSessions:
    return BrowserSessions(KNOWN, ended_sessions.end)


def make_scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "scheme": "http", "headers": pairs}


async def test_the_key_cookie_is_hidden_from_scripts(sessions: BrowserSessions) -> None:
    identity, cookies = await sessions.sign_in(make_scope(), "good")
    assert identity.owner == "ada"
    assert cookies == [
        "moyin_session=good; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict",
        NO_FORMER,
        NO_REFRESH,
    ]


@pytest.mark.parametrize("secret", ["good", ""])
def test_cookies_over_https_belong_to_the_host_alone(secret: str) -> None:
    """Browsers reject a name with the prefix from other hosts, and without Secure and Path=/."""
    cookies = build_cookies(make_scope(x_forwarded_proto="https"), secret, secret, 60)
    age = 2592000 if secret else 0
    ending = "HttpOnly; SameSite=Strict; Secure"
    assert cookies == [
        f"__Host-moyin_session={secret}; Path=/; Max-Age={age}; {ending}",
        # Cookies of earlier versions are deleted.
        f"{NO_FORMER}; Secure",
        f"moyin_session=; Path=/; Max-Age=0; {ending}",
        f"{NO_REFRESH}; Secure",
        f"__Host-moyin_refresh={secret}; Path=/; Max-Age=60; {ending}",
    ]


async def test_ambiguous_cookies_sign_nobody_in_and_can_be_deleted(
    sessions: BrowserSessions, ended_sessions: EndedSessions
) -> None:
    scope = make_scope(
        cookie=f"moyin_session=good; moyin_session={TOKEN}; moyin_refresh=a; moyin_refresh=b"
    )
    assert await sessions.find_identity(scope) is None
    assert sessions.find_refresh_secret(scope) is None
    assert await sessions.sign_out(scope) == build_cookies(scope, "")
    assert ended_sessions.ids == []


async def test_a_token_cookie_expires_with_the_token(sessions: BrowserSessions) -> None:
    time_before = time.time()
    _, [cookie, *_] = await sessions.sign_in(make_scope(), TOKEN)
    max_age = int(cookie.partition("Max-Age=")[2].partition(";")[0])
    assert EXPIRES - time.time() - 1 <= max_age <= EXPIRES - time_before


def test_the_refresh_cookie_is_sent_to_the_session_path_only() -> None:
    refresh_cookie = build_cookies(make_scope(), TOKEN, "moyinr_x", 60)[-1]
    assert refresh_cookie == (
        "moyin_refresh=moyinr_x; Path=/accounts/session; Max-Age=60; HttpOnly; SameSite=Strict"
    )


@pytest.mark.parametrize(
    "secret", ["bad", "", "good\r\nset-cookie: x=1", "good; a=1", "ü", INTERNAL]
)
async def test_invalid_keys_get_no_cookie(sessions: BrowserSessions, secret: str) -> None:
    with pytest.raises(InvalidKey):
        await sessions.sign_in(make_scope(), secret)


async def test_pages_of_other_sites_cannot_sign_in_or_out(
    sessions: BrowserSessions, ended_sessions: EndedSessions
) -> None:
    foreign_headers = {"host": "gateway.example", "origin": "http://evil.example"}
    with pytest.raises(CrossSiteRequest):
        await sessions.sign_in(make_scope(**foreign_headers), "good")
    with pytest.raises(CrossSiteRequest):
        await sessions.sign_out(make_scope(**foreign_headers, cookie=f"moyin_session={TOKEN}"))
    assert ended_sessions.ids == []


async def test_signing_out_deletes_the_cookies_and_ends_the_session(
    sessions: BrowserSessions, ended_sessions: EndedSessions
) -> None:
    deleted_cookies = [
        "moyin_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict", NO_FORMER, NO_REFRESH
    ]  # fmt: skip
    for cookie in ("", "moyin_session=bad", "moyin_session=good"):
        assert await sessions.sign_out(make_scope(cookie=cookie)) == deleted_cookies
    assert ended_sessions.ids == []
    assert await sessions.sign_out(make_scope(cookie=f"moyin_session={TOKEN}")) == deleted_cookies
    assert ended_sessions.ids == ["ses_1"]


async def test_a_cookie_has_an_identity_while_its_key_is_valid(sessions: BrowserSessions) -> None:
    identity = await sessions.find_identity(make_scope(cookie="moyin_session=good"))
    assert identity is not None and identity.owner == "ada"
    assert await sessions.find_identity(make_scope(cookie="moyin_session=bad")) is None
    assert await sessions.find_identity(make_scope()) is None
