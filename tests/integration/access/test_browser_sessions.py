"""Tests cookie-based browser sessions of the accounts app, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.integration.access.fixtures import PASSWORD, AccountsApp, AppResponse

# As in test_accounts.py: one app for each kind of database.
pytestmark = pytest.mark.asyncio(loop_scope="module")
ADDRESS = f"2001:db8::{secrets.randbelow(9000) + 1000}:1"
OWN_PAGE = {
    "sec-fetch-site": "same-origin",
    "user-agent": "Firefox 140",
    "x-forwarded-for": ADDRESS,
}
EVIL = ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"})


class Browser:
    """A browser on one of the gateway's own pages, with its own cookies."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = OWN_PAGE
    ) -> AppResponse:
        url = f"{self._url}/accounts{path}"
        async with self._session.request(method, url, json=body, headers=headers) as response:
            text = await response.text()
            response_body = await response.json(content_type=None) if text else {}
            for cookie in self.cookies.values():
                assert not cookie or cookie not in text, "a body contains a token"
            return AppResponse(response.status, response.headers, response_body)

    async def fetch_status(self, method: str, path: str, body: Any = None) -> int:
        return (await self.call(method, path, body)).status

    @property
    def cookies(self) -> dict[str, str]:
        return {item.key: item.value for item in self._session.cookie_jar}

    def delete_cookie(self, name: str) -> None:
        self._session.cookie_jar.clear(lambda cookie: cookie.key == name)


@asynccontextmanager
async def open_browser(accounts: AccountsApp) -> AsyncIterator[Browser]:
    cookie_jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=cookie_jar) as session:
        yield Browser(accounts.url, session)


def build_credentials(player: Mapping[str, Any]) -> dict[str, str]:
    return {"email": player["user"]["email"], "password": PASSWORD}


async def test_a_person_signs_in_renews_and_signs_out(accounts: AccountsApp) -> None:
    member = await accounts.add_member(await accounts.create_organisation())
    async with open_browser(accounts) as browser:
        login_response = await browser.call("POST", "/session", build_credentials(member))
        assert (login_response.status, login_response.headers["cache-control"]) == (200, "no-store")
        assert (login_response.body["user"], login_response.body["renewable"]) == (
            member["user"]["id"],
            True,
        )
        assert 0 < login_response.body["expires_in"] <= 300
        assert set(browser.cookies) == {"moyin_session", "moyin_refresh"}
        assert await browser.fetch_status("GET", "/me") == 200
        assert await browser.fetch_status("PATCH", "/me", {"name": "Bo"}) == 200
        browser.delete_cookie("moyin_session")
        assert await browser.fetch_status("GET", "/me") == 401
        assert await browser.fetch_status("POST", "/session/renew") == 200
        assert await browser.fetch_status("GET", "/me") == 200
        stolen_cookies = dict(browser.cookies)
        assert await browser.fetch_status("POST", "/session/end") == 204
        assert browser.cookies == {}
    for path, name in (("/me", "moyin_session"), ("/session/renew", "moyin_refresh")):
        method = "POST" if name == "moyin_refresh" else "GET"
        cookie = f"{name}={stolen_cookies[name]}"
        refused_response = await accounts.call(method, path, cookie=cookie, **OWN_PAGE)
        assert refused_response.status == 401, path


async def test_concurrent_renewals_of_tabs_keep_the_session(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        await browser.call("POST", "/session", build_credentials(player))
        renewals = [browser.fetch_status("POST", "/session/renew") for _ in range(5)]
        assert await asyncio.gather(*renewals) == [200] * 5
        assert await browser.fetch_status("POST", "/session/renew") == 200
        assert await browser.fetch_status("GET", "/me") == 200


async def test_using_the_refresh_cookie_elsewhere_ends_the_session(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        await browser.call("POST", "/session", build_credentials(player))
        secret = browser.cookies["moyin_refresh"]
        thief_session = await accounts.expect_ok(
            "POST", "/refresh", None, {"refresh_token": secret}
        )
        assert await browser.fetch_status("POST", "/session/renew") == 401
    assert (await accounts.call("GET", "/me", thief_session["access_token"])).status == 401


async def test_the_refresh_token_of_a_new_session_moves_into_the_cookie(
    accounts: AccountsApp,
) -> None:
    player = await accounts.register_player()
    body = {"refresh_token": player["refresh_token"]}
    async with open_browser(accounts) as browser:
        login = await browser.call("POST", "/session", body)
        assert (login.status, login.body["user"]) == (200, player["user"]["id"])
        assert browser.cookies["moyin_refresh"] != player["refresh_token"]
        assert await browser.fetch_status("POST", "/session/renew") == 200
    async with open_browser(accounts) as second_browser:
        refused_response = await second_browser.call("POST", "/session", body)
        assert (refused_response.status, refused_response.body["field"]) == (401, "refresh_token")


async def test_an_api_key_signs_in_without_renewal(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        await browser.call("POST", "/session", build_credentials(player))
        login_response = await browser.call(
            "POST", "/session", {"api_key": f" {accounts.operator} "}
        )
        assert (
            login_response.status,
            login_response.body["owner"],
            login_response.body["renewable"],
        ) == (200, "admin", False)
        assert login_response.body["expires_in"] == 30 * 86_400
        # The secret of the player's session is gone, with which the browser would become the player.
        assert set(browser.cookies) == {"moyin_session"}
        assert (await browser.call("POST", "/session/renew")).code == "invalid_token"
        assert (await browser.call("GET", "/whoami")).body["owner"] == "admin"
        assert await browser.fetch_status("GET", "/sessions") == 403
        # A header counts before the cookie.
        bearer_headers = {"authorization": f"Bearer {player['access_token']}"}
        whoami_response = await browser.call("GET", "/whoami", headers=bearer_headers)
        assert whoami_response.body["user"] == player["user"]["id"]
        assert await browser.fetch_status("POST", "/session/end") == 204
    assert (await accounts.call("GET", "/whoami", accounts.operator)).status == 200


async def test_an_access_token_may_be_pasted_with_spaces(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        token = f" {player['access_token']}\n"
        login_response = await browser.call("POST", "/session", {"api_key": token})
        assert (login_response.status, login_response.body["user"]) == (200, player["user"]["id"])
        assert 0 < login_response.body["expires_in"] <= 300
        assert await browser.fetch_status("GET", "/me") == 200


async def test_requests_of_other_sites_are_refused(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        await browser.call("POST", "/session", build_credentials(player))
        cookies_before = browser.cookies
        calls: list[tuple[str, str, Any]] = [
            ("POST", "/session", build_credentials(player)),
            ("POST", "/session/renew", None),
            ("POST", "/session/end", None),
            ("PATCH", "/me", {"name": "Eve"}),
            ("DELETE", "/sessions/x", None),
            ("POST", "/logout", None),
        ]
        for method, path, body in calls:
            for headers in EVIL:
                refused_response = await browser.call(method, path, body, headers)
                assert (refused_response.status, refused_response.code) == (
                    403,
                    "cross_site_request",
                ), path
        for method, path in (("PATCH", "/me"), ("POST", "/session/renew")):
            headerless_response = await browser.call(method, path, {}, headers={})
            assert (headerless_response.status, headerless_response.code) == (
                403,
                "cross_site_request",
            ), path
        assert browser.cookies == cookies_before
        assert (await browser.call("GET", "/me")).body["name"] == "Ann"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "a@example.com"},
        {"email": "a@example.com", "password": None},
        {"api_key": "k", "refresh_token": "r"},
        {"email": "a@example.com", "password": "x", "api_key": "k"},
        {"api_key": ["k"]},
        {"api_key": "k", "scopes": ["*"]},
    ],
    ids=str,
)
async def test_session_request_accepts_one_kind_of_credential(
    accounts: AccountsApp, body: Any
) -> None:
    refused_response = await accounts.call("POST", "/session", None, body)
    assert (refused_response.status, refused_response.code) == (400, "invalid_request")
    assert refused_response.body["field"] and "set-cookie" not in refused_response.headers


async def test_wrong_secrets_get_no_cookie(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    wrong_bodies: list[tuple[Any, str]] = [
        ({**build_credentials(player), "password": "wrong"}, "invalid_credentials"),
        ({"api_key": "moyin_x_y"}, "invalid_api_key"),
        ({"refresh_token": "moyinr_x"}, "invalid_token"),
    ]
    for body, code in wrong_bodies:
        refused_response = await accounts.call("POST", "/session", None, body)
        assert (refused_response.status, refused_response.code) == (401, code)
        assert "set-cookie" not in refused_response.headers


async def test_guesses_are_slowed_down_as_at_login(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    wrong_credentials = {**build_credentials(player), "password": "wrong"}
    client_headers = {"x-forwarded-for": f"2001:db8::{secrets.token_hex(2)}:{secrets.token_hex(2)}"}
    paths = ["/session", "/login"] * 5
    # Ten are verified at once; of further ones, two may wait for their turn.
    for path in paths:
        guess_response = await accounts.call(
            "POST", path, None, wrong_credentials, **client_headers
        )
        assert (guess_response.status, guess_response.code) == (401, "invalid_credentials")
    tasks = [
        asyncio.create_task(accounts.call("POST", path, None, wrong_credentials, **client_headers))
        for path in paths
    ]
    refusal_count = 0
    for task in asyncio.as_completed(tasks):
        refusal_count += (await task).code == "too_many_attempts"
        if refusal_count > len(paths) // 2:
            break
    assert refusal_count > len(paths) // 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_sessions_are_listed_and_ended_one_by_one(accounts: AccountsApp) -> None:
    player, other_player = await accounts.register_player(), await accounts.register_player()
    async with open_browser(accounts) as first_browser, open_browser(accounts) as second_browser:
        for browser in (second_browser, first_browser):
            await browser.call("POST", "/session", build_credentials(player))
        listed_sessions = (await first_browser.call("GET", "/sessions")).body["sessions"]
        assert [listed_session["current"] for listed_session in listed_sessions] == [
            True,
            False,
            False,
        ]
        assert (
            listed_sessions[0]["user_agent"] == "Firefox 140"
            and listed_sessions[0]["address"] == ADDRESS
        )
        assert (
            listed_sessions[0]["created_at"]
            <= listed_sessions[0]["last_used_at"]
            < listed_sessions[0]["expires_at"]
        )
        ids = [listed_session["id"] for listed_session in listed_sessions]
        hidden_response = await accounts.call(
            "DELETE", f"/sessions/{ids[1]}", other_player["access_token"]
        )
        assert (hidden_response.status, hidden_response.code) == (404, "not_found")
        assert await first_browser.fetch_status("DELETE", f"/sessions/{ids[1]}") == 204
        assert await first_browser.fetch_status("DELETE", f"/sessions/{ids[1]}") == 404
        assert await second_browser.fetch_status("GET", "/me") == 401
        assert await second_browser.fetch_status("POST", "/session/renew") == 401
        assert await first_browser.fetch_status("GET", "/me") == 200
        remaining_sessions = (await first_browser.call("GET", "/sessions")).body["sessions"]
        assert [listed_session["id"] for listed_session in remaining_sessions] == [ids[0], ids[2]]


async def test_a_disabled_user_is_signed_out(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    async with open_browser(accounts) as browser:
        await browser.call("POST", "/session", build_credentials(player))
        path = f"/users/{player['user']['id']}"
        await accounts.expect_ok("PATCH", path, accounts.operator, {"disabled": True})
        assert await browser.fetch_status("GET", "/me") == 401
        assert await browser.fetch_status("POST", "/session/renew") == 401
        refused_response = await browser.call("POST", "/session", build_credentials(player))
        assert (refused_response.status, refused_response.code) == (401, "invalid_credentials")
