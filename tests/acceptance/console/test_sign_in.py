"""Tests signing in to the console as a user or with a key, and signing out."""

from __future__ import annotations

from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


def test_a_key_signs_in_and_out(console: ConsoleBrowser, gateway: RunningStack) -> None:
    page = console.open().page
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    console.check_accessibility()
    console.screenshot("sign-in")
    console.sign_in_with_key(gateway.api_key)
    console.check_accessibility()
    page.get_by_role("banner").get_by_role("button").last.click()
    page.get_by_role("menuitem", name="Sign out").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()


def test_a_wrong_key_is_reported_with_the_servers_message(console: ConsoleBrowser) -> None:
    page = console.open().page
    page.get_by_role("tab", name="API key").click()
    page.get_by_placeholder("moyin_").fill("moyin_wrong")
    with page.expect_response("**/accounts/session") as response:
        page.get_by_role("button", name="Sign in").click()
    body = response.value.json()
    alert = page.get_by_role("alert")
    assert body["code"] == "invalid_api_key"
    for shown_text in (body["detail"], f"Code: {body['code']}", f"Request: {body['request_id']}"):
        alert.get_by_text(shown_text, exact=True).wait_for()
    console.check_accessibility()
    console.check_clean("401")
