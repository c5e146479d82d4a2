"""Tests what docs/security.md advises: a second host name keeps ComfyUI's page from the console's session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page

from tests.acceptance.console.browser import ConsoleBrowser, open_browser
from tests.stack import RunningStack

# Of one site, so that browsers send cookies that are bound to the site from one to the other.
_FIRST, _SECOND = "moyin.studio.example", "comfy.studio.example"
# What a node package's script would do with the rights of whoever is signed in at an address.
_ATTACK = """
async (address) => {
  const read = await fetch(`${address}/accounts/whoami`, {credentials: "include"})
    .then((answer) => answer.json(), (error) => error.name);
  const options = {method: "POST", credentials: "include", body: JSON.stringify({name: "stolen"})};
  const json = {"content-type": "application/json"};
  const write = await fetch(`${address}/accounts/keys`, {...options, headers: json})
    .then((answer) => answer.status, (error) => error.name);
  // Browsers send this without asking, and hide the answer.
  await fetch(`${address}/accounts/keys`, {...options, mode: "no-cors"}).catch(() => null);
  return {read, write, cookies: document.cookie};
}
"""


@pytest.fixture
def named(gateway: RunningStack, console_tools: None, tmp_path: Path) -> Iterator[ConsoleBrowser]:
    """Provide a browser that reaches the gateway by two host names."""
    port = urlsplit(gateway.url).port
    with open_browser(f"http://{_FIRST}:{port}", tmp_path, hosts=(_FIRST, _SECOND)) as browser:
        yield browser


def call(gateway: RunningStack, method: str, path: str, **options: Any) -> Any:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    response = httpx.request(
        method, f"{gateway.url}/accounts{path}", headers=headers, timeout=60, **options
    )
    return response.raise_for_status().json()


def count_stolen(gateway: RunningStack) -> int:
    return len(call(gateway, "GET", "/keys", params={"search": "stolen", "valid": True})["keys"])


def sign_in_at(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/comfy/session")
    page.get_by_label("API key").fill(key)
    with page.expect_navigation(wait_until="commit"):
        page.get_by_role("button", name="Sign in").click()
    # Pages of ComfyUI's API have no policy that would stop a script.
    response = page.goto(f"{url}/comfy/api/system_stats")
    assert response is not None
    assert response.status == 200
    assert "content-security-policy" not in response.headers


def test_scripts_of_comfyuis_page_do_not_reach_the_session_at_another_name(
    named: ConsoleBrowser, gateway: RunningStack
) -> None:
    first, second = named.url, named.url.replace(_FIRST, _SECOND)
    few = call(gateway, "POST", "/keys", json={"name": "few", "scopes": ["jobs:read"]})["key"]
    before = count_stolen(gateway)
    page = named.sign_in_with_key(gateway.api_key).page
    sign_in_at(page, second, few)
    own = page.evaluate(_ATTACK, second)
    assert (own["read"]["scopes"], own["write"]) == (["jobs:read"], 403)
    stolen = page.evaluate(_ATTACK, first)
    assert stolen == {"read": "TypeError", "write": "TypeError", "cookies": ""}
    assert count_stolen(gateway) == before
    # The operator is signed in there all the while, and under one name the script would have had all rights.
    named.open("/account").page.get_by_role("navigation").wait_for()
    page.goto(f"{first}/comfy/api/system_stats")
    reached = page.evaluate(_ATTACK, first)
    assert (reached["read"]["scopes"], reached["write"]) == (["*"], 201)
    assert count_stolen(gateway) > before
    for key in call(gateway, "GET", "/keys", params={"search": "stolen", "valid": True})["keys"]:
        httpx.delete(
            f"{gateway.url}/accounts/keys/{key['id']}",
            headers={"authorization": f"Bearer {gateway.api_key}"}, timeout=60,
        ).raise_for_status()  # fmt: skip
