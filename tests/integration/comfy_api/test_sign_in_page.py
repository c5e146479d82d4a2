"""Tests browser sign-in at ``/comfy/`` on a real gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from moyin.proxy.route import Route, RouteTable, Upstream
from moyin.store.keys import KeyStore
from tests.integration.gateway.fixtures import Farm

FORM = {"accept": "text/html"}


@pytest.fixture
async def browser(farm: Farm) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session of the gateway that keeps cookies."""
    cookie_jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(farm.url, cookie_jar=cookie_jar) as session:
        yield session


async def sign_in(browser: aiohttp.ClientSession, key: str) -> None:
    async with browser.post("/comfy/session", json={"key": key}) as response:
        assert response.status == 200, await response.text()


async def test_a_form_signs_in_and_out(farm: Farm, browser: aiohttp.ClientSession) -> None:
    async with browser.get("/comfy", allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (307, "/comfy/")
    async with browser.get("/comfy/", headers=FORM) as response:
        page = await response.text()
        assert response.status == 401
        assert '<form method="post" action="/comfy/session">' in page
        assert "default-src 'none'" in response.headers["content-security-policy"]
        # The form needs an origin at addresses without TLS.
        assert response.headers["referrer-policy"] == "same-origin"
    form = {"key": f" {farm.key} "}
    async with browser.post("/comfy/session", data=form, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/comfy/")
        cookie, old_cookie, refresh_cookie = response.headers.getall("set-cookie")
    assert "HttpOnly; SameSite=Strict" in cookie and "; Path=/; " in cookie
    assert old_cookie.startswith("moyin_session=; Path=/comfy/; Max-Age=0; ")
    assert refresh_cookie.startswith("moyin_refresh=; Path=/accounts/session; Max-Age=0; ")
    async with browser.get("/comfy/session") as response:
        assert await response.json() == {"owner": "ann", "user": None}
    async with browser.get("/comfy/session", headers=FORM) as response:
        assert "Sign out" in await response.text()
    async with browser.post("/comfy/session/end", allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/comfy/")
    async with browser.get("/comfy/session") as response:
        assert (response.status, (await response.json())["code"]) == (401, "invalid_api_key")


async def test_the_page_shows_that_a_key_is_wrong(
    farm: Farm, browser: aiohttp.ClientSession
) -> None:
    async with browser.post("/comfy/session", data={"key": "<moyin_x>"}) as response:
        assert response.status == 401
        message = "The API key has invalid characters; check that it was copied completely."
        assert message in await response.text()
        assert "set-cookie" not in response.headers
    async with browser.post("/comfy/session", data={}) as response:
        assert (response.status, 'role="alert"' in await response.text()) == (400, True)
    async with browser.post("/comfy/session", json={"kee": "x"}) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_request")
    async with browser.post("/comfy/session", data=b"k" * 20_000) as response:
        assert (response.status, (await response.json())["code"]) == (413, "body_too_large")


async def test_cookie_is_accepted_by_the_gateways_own_routes_only(
    farm: Farm, browser: aiohttp.ClientSession
) -> None:
    async with browser.get("/comfy/api/queue") as response:
        assert response.status == 401
    await sign_in(browser, farm.key)
    async with browser.get("/comfy/api/nothing-there") as response:
        assert (response.status, (await response.json())["code"]) == (404, "route_not_found")
    [cookie] = [f"moyin_session={item.value}" for item in browser.cookie_jar]
    service_route = Route(name="svc", prefix="/svc", upstreams=(Upstream(url=farm.services_url),))
    farm.proxy.configure(RouteTable([service_route]))
    for path, status in (("/jobs", 200), ("/api/queue", 200), ("/svc/x", 401), ("/comfyx", 404)):
        async with (
            aiohttp.ClientSession(farm.url) as other_session,
            other_session.get(path, headers={"cookie": cookie}) as response,
        ):
            assert response.status == status, path
    assert farm.services.calls == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "http://evil.example"}, {"sec-fetch-site": "same-site"}],
    ids=["silent", "origin", "site"],
)
async def test_requests_of_other_sites_are_refused_despite_the_cookie(
    farm: Farm, browser: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    await sign_in(browser, farm.key)
    for method in ("POST", "PUT", "DELETE"):
        async with browser.request(method, "/comfy/api/x", headers=headers) as response:
            outcome = (response.status, (await response.json())["code"])
            assert outcome == (403, "cross_site_request")
    async with browser.ws_connect("/comfy/ws", headers=headers) as socket:
        message = await socket.receive(10)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert (message.data, (message.extra or "")[:18]) == (1008, "cross_site_request")
    if headers:
        for path in ("/comfy/session", "/comfy/session/end"):
            async with browser.post(path, json={"key": farm.key}, headers=headers) as response:
                assert response.status == 403
    async with browser.post("/comfy/api/x", headers={"origin": farm.url}) as response:
        assert response.status == 404


async def test_a_key_in_the_query_opens_comfyuis_routes_only(farm: Farm) -> None:
    async with aiohttp.ClientSession(farm.url) as session:
        for path in ("/api/internal/nothing", "/comfy/api/i18n/nothing", "/internal/nothing"):
            for name, status in (("key", 401), ("token", 401), ("api_key", 404)):
                async with session.get(path, params={name: farm.key}) as response:
                    assert response.status == status, (path, name)
        for path in ("/jobs", "/artifacts/x", "/comfy/api/jobsx"):
            async with session.get(path, params={"api_key": farm.key}) as response:
                assert response.status == 401, path


async def test_a_revoked_key_does_not_sign_in(farm: Farm, browser: aiohttp.ClientSession) -> None:
    keys = KeyStore(farm.database)
    key_id, key = await keys.create("ann", "short")
    await keys.revoke(key_id)
    async with browser.post("/comfy/session", json={"key": key}) as response:
        assert response.status == 401


async def test_the_root_path_is_a_page_for_comfyui_and_a_health_check_for_ollama(
    farm: Farm, browser: aiohttp.ClientSession
) -> None:
    async with browser.get("/?x=1", headers=FORM, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (307, "/comfy/?x=1")
    key_headers = {"authorization": f"Bearer {farm.key}"}
    for headers in (
        {},
        {"accept": "*/*"},
        {"accept": ""},
        {"accept": "application/json"},
        key_headers,
    ):
        async with browser.get("/?x=<b>", headers=headers, allow_redirects=False) as response:
            page = await response.text()
            assert (response.status, response.content_type) == (200, "text/html")
            assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
            assert '<a href="/comfy/">' in page and "<b>" not in page
    ollama_headers = {"user-agent": "ollama/0.17.4 (amd64 linux) Go/go1.24"}
    async with browser.get("/", headers=ollama_headers) as response:
        assert (response.status, await response.text()) == (200, "Ollama is running")
    async with browser.head("/", headers=ollama_headers) as response:
        assert response.status == 200
    async with browser.get("/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
