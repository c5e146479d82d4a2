"""Tests that axe finds no problem in open menus, in light and dark."""

from __future__ import annotations

import pytest

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_open_menus_are_accessible(
    console: ConsoleBrowser, gateway: RunningStack, color_scheme: str
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    admin_email = api.new_member(organisation, "admin", "Aki")
    api.new_member(organisation, "member", "Mika")
    console.page.emulate_media(color_scheme=color_scheme)
    console.sign_in(admin_email, PASSWORD)
    for path, button, items in (
        ("/people", "Actions for Mika", ["Change role", "Disable"]),
        ("/jobs?status=queued", "All that match the filters", ["Delete"]),
        ("/account", "Language", ["日本語"]),
    ):
        page = console.open(path).page
        page.get_by_role("button", name=button).click()
        for item in items:
            page.get_by_role("menuitem", name=item).wait_for()
        console.check_accessibility()
        # The first item has the focus, so that the keyboard's arrows go on from there.
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Escape")
        page.get_by_role("menu").wait_for(state="detached")
