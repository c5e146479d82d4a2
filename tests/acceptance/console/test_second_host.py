"""Tests that a second host name for ComfyUI's pages protects the console's session (docs/security.md)."""

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
def two_host_browser(
    gateway: RunningStack, console_tools: None, tmp_path: Path
) -> Iterator[ConsoleBrowser]:
    """Provide a browser that reaches the gateway by two host names."""
    port = urlsplit(gateway.url).port
    with open_browser(f"http://{_FIRST}:{port}", tmp_path, hosts=(_FIRST, _SECOND)) as browser:
        yield browser


def call_accounts(gateway: RunningStack, method: str, path: str, **options: Any) -> Any:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    response = httpx.request(
        method, f"{gateway.url}/accounts{path}", headers=headers, timeout=60, **options
    )
    return response.raise_for_status().json()


def count_stolen_keys(gateway: RunningStack) -> int:
    return len(
        call_accounts(gateway, "GET", "/keys", params={"search": "stolen", "valid": True})["keys"]
    )


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
    two_host_browser: ConsoleBrowser, gateway: RunningStack
) -> None:
    first_address, second_address = (
        two_host_browser.url,
        two_host_browser.url.replace(_FIRST, _SECOND),
    )
    limited_key = call_accounts(
        gateway, "POST", "/keys", json={"name": "few", "scopes": ["jobs:read"]}
    )["key"]
    count_before = count_stolen_keys(gateway)
    page = two_host_browser.sign_in_with_key(gateway.api_key).page
    sign_in_at(page, second_address, limited_key)
    own_host_result = page.evaluate(_ATTACK, second_address)
    assert (own_host_result["read"]["scopes"], own_host_result["write"]) == (["jobs:read"], 403)
    other_host_result = page.evaluate(_ATTACK, first_address)
    assert other_host_result == {"read": "TypeError", "write": "TypeError", "cookies": ""}
    assert count_stolen_keys(gateway) == count_before
    # The operator is signed in there all the while, and under one name the script would have had all rights.
    two_host_browser.open("/account").page.get_by_role("navigation").wait_for()
    page.goto(f"{first_address}/comfy/api/system_stats")
    same_host_result = page.evaluate(_ATTACK, first_address)
    assert (same_host_result["read"]["scopes"], same_host_result["write"]) == (["*"], 201)
    assert count_stolen_keys(gateway) > count_before
    for key in call_accounts(gateway, "GET", "/keys", params={"search": "stolen", "valid": True})[
        "keys"
    ]:
        httpx.delete(
            f"{gateway.url}/accounts/keys/{key['id']}",
            headers={"authorization": f"Bearer {gateway.api_key}"}, timeout=60,
        ).raise_for_status()  # fmt: skip
