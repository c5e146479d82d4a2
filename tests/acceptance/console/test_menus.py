"""Tests that axe finds no problem in open menus, in light and dark."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_open_menus_are_accessible(
    console: ConsoleBrowser, gateway: RunningStack, color_scheme: str
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    admin_email = api.create_member(organisation, "admin", "Aki")
    api.create_member(organisation, "member", "Mika")
    session = api.call("POST", "/login", {"email": admin_email, "password": PASSWORD})
    api.call("POST", "/keys", {"name": "nightly"}, key=session["access_token"])
    console.page.emulate_media(color_scheme=color_scheme)
    console.sign_in(admin_email, PASSWORD)
    for path, button in (
        ("/people", "Actions for Mika"),
        ("/people/keys", "Actions for nightly"),
        ("/jobs?status=queued", "All that match the filters"),
        ("/jobs", "All that match the filters"),
        ("/account", "Language"),
        ("/account", "Aki"),
    ):
        page = console.open(path).page
        page.get_by_role("button", name=button, exact=True).click()
        menu = page.get_by_role("menu")
        expect(menu.locator("[role^=menuitem]").first).to_be_focused()
        console.check_accessibility()
        page.keyboard.press("Escape")
        menu.wait_for(state="detached")
