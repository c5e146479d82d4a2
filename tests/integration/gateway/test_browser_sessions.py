"""Tests that the accounts app and the gateway on one host share a browser's session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from moyin.settings import Settings
from tests.integration.access.fixtures import PASSWORD, AccountsApp, accounts_serving
from tests.integration.gateway.fixtures import SIGNING_KEY, Farm
from tests.integration.servers import ValkeyServer
from tests.waiting import eventually

OWN_PAGE = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def accounts_app(farm: Farm, valkey_server: ValkeyServer) -> AsyncIterator[AccountsApp]:
    settings = Settings(
        data=farm.settings.data,
        redis_url=valkey_server.url,
        secret=SIGNING_KEY.decode(),
    )
    async with accounts_serving(settings) as app:
        yield app


@pytest.fixture
async def browser(farm: Farm) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client that sends its cookies to every port of the host, as browsers do."""
    cookie_jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(farm.url, cookie_jar=cookie_jar, headers=OWN_PAGE) as session:
        yield session


async def sign_in(browser: aiohttp.ClientSession, app: AccountsApp, email: str) -> None:
    body = {"email": email, "password": PASSWORD}
    async with browser.post(f"{app.url}/accounts/session", json=body) as response:
        assert response.status == 200, await response.text()


async def fetch_status(browser: aiohttp.ClientSession, path: str, method: str = "GET") -> int:
    async with browser.request(method, path, allow_redirects=False) as response:
        return response.status


async def test_a_signed_in_member_is_known_to_the_gateway_and_its_page(
    farm: Farm, accounts_app: AccountsApp, browser: aiohttp.ClientSession
) -> None:
    member = await accounts_app.add_member(await accounts_app.create_organisation())
    assert await fetch_status(browser, "/jobs") == 401
    await sign_in(browser, accounts_app, member["user"]["email"])
    assert await fetch_status(browser, "/jobs") == 200
    assert await fetch_status(browser, "/comfy/api/queue") == 200
    async with browser.get("/comfy/session") as response:
        assert (await response.json())["user"] == member["user"]["id"]
    async with browser.post("/jobs", json={}, headers={"sec-fetch-site": "cross-site"}) as response:
        assert (response.status, (await response.json())["code"]) == (403, "cross_site_request")
    async with browser.ws_connect("/jobs/x/ws", headers={"sec-fetch-site": "same-site"}) as socket:
        message = await socket.receive(10)
        assert (message.data, (message.extra or "")[:18]) == (1008, "cross_site_request")
    # ComfyUI's page signs out everywhere on this device: the session itself ends.
    renew_url = f"{accounts_app.url}/accounts/session/renew"
    assert await fetch_status(browser, renew_url, "POST") == 200
    assert await fetch_status(browser, "/comfy/session/end", "POST") == 303
    assert [cookie.key for cookie in browser.cookie_jar] == []
    assert await fetch_status(browser, "/jobs") == 401


async def test_players_may_not_list_jobs_and_ended_sessions_are_refused(
    farm: Farm, accounts_app: AccountsApp, browser: aiohttp.ClientSession
) -> None:
    player = await accounts_app.register_player()
    await sign_in(browser, accounts_app, player["user"]["email"])
    assert await fetch_status(browser, "/jobs") == 403
    logout_body = {"everywhere": True}
    await accounts_app.expect_ok("POST", "/logout", player["access_token"], logout_body)

    async def is_signed_out() -> bool:
        return await fetch_status(browser, "/jobs") == 401

    await eventually(is_signed_out)
    assert await fetch_status(browser, "/comfy/") == 401


async def test_pages_link_to_the_console(farm: Farm, browser: aiohttp.ClientSession) -> None:
    for path in ("/comfy/", "/comfy/session", "/"):
        async with browser.get(path, headers={"accept": "text/html"}) as response:
            assert '<a href="/console/">Open the console</a>' in await response.text(), path
    async with browser.post("/comfy/session", json={"key": farm.key}) as response:
        assert response.status == 200
    async with browser.get("/comfy/session", headers={"accept": "text/html"}) as response:
        assert '<a href="/console/">Open the console</a>' in await response.text()
    async with browser.get("/comfy/session/renew.js") as response:
        assert (response.status, response.content_type) == (200, "text/javascript")
        assert "/accounts/session/renew" in await response.text()
