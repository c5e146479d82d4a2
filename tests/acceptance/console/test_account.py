"""Tests that users accept invitations, register, and manage their own account and keys."""

from __future__ import annotations

import secrets

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack

NEXT = "another battery horse"


def test_a_member_accepts_an_invitation(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email, token = api.invite(organisation, "member", "Mika")
    page = console.open(f"/reset#token={token}&invited=1").page
    page.get_by_role("heading", name="Welcome to Moyin").wait_for()
    assert token not in page.url
    console.check_accessibility()
    page.get_by_label("New password").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_text("Sign in with your email and this password.").wait_for()
    page.get_by_role("link", name="Go to sign-in").wait_for()
    console.sign_in(email, PASSWORD).open("/account")
    page.get_by_text(email).wait_for()
    # The link works once.
    console.open(f"/reset?token={token}")
    page.get_by_role("heading", name="Choose your password").wait_for()
    page.get_by_label("New password").fill(NEXT)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_role("alert").get_by_text("invalid_token").wait_for()
    console.check_clean("401")


def test_a_member_manages_the_account(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "member", "Mika")
    other_token = api.call("POST", "/login", {"email": email, "password": PASSWORD})["access_token"]
    api.call("PUT", f"/limits/owner:{organisation}", {"usd_per_day": "5", "open_jobs": 7})
    page = console.sign_in(email, PASSWORD).open("/account").page
    page.get_by_text("$0.00 of $5.00").wait_for()
    page.get_by_text("This browser").wait_for()
    console.check_accessibility()
    console.screenshot("account", also_in="ja")

    page.get_by_role("textbox", name="Name", exact=True).fill("Mika S.")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("banner").get_by_role("button", name="Mika S.").wait_for()

    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name of the key").fill("laptop")
    page.get_by_role("button", name="Create", exact=True).click()
    secret = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    page.get_by_role("cell", name="laptop").first.wait_for()
    assert api.call("GET", "/whoami", key=secret)["owner"] == organisation

    page.get_by_role("button", name="End the session of").click()
    page.get_by_role("dialog").get_by_role("button", name="End").click()
    page.get_by_role("button", name="End the session of").wait_for(state="detached")
    assert api.send("GET", "/me", key=other_token).status_code == 401

    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password").fill(NEXT)
    page.get_by_role("button", name="Change password").click()
    page.get_by_text("The password is changed").wait_for()
    assert api.send("POST", "/login", {"email": email, "password": PASSWORD}).status_code == 401

    page.get_by_text("Dark", exact=True).click()
    console.check_accessibility()
    console.screenshot("account-dark")
    page.get_by_role("button", name="Sign out everywhere").click()
    page.get_by_role("dialog").get_by_role("button", name="Sign out everywhere").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    console.sign_in(email, NEXT)
    console.check_clean("401")


def test_a_player_registers_and_closes_the_account(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    email = f"{secrets.token_hex(6)}@example.com"
    page = console.open().page
    page.get_by_role("button", name="Register").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("Ann")
    page.get_by_role("textbox", name="Email").fill(email)
    page.get_by_label("New password").fill(PASSWORD)
    console.check_accessibility()
    page.get_by_role("button", name="Register").click()
    page.get_by_role("heading", name="My account").wait_for()
    [player] = api.call("GET", f"/users?email={email}")["users"]
    assert (player["kind"], player["name"]) == ("player", "Ann")
    page.get_by_role("button", name="Close my account").click()
    page.get_by_role("dialog").get_by_role("button", name="Close my account").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    assert api.call("GET", f"/users?email={email}")["users"] == []
    console.check_clean("401")


def test_a_forged_provider_callback_signs_no_user_in(console: ConsoleBrowser) -> None:
    page = console.open("/oidc?state=foreign&code=stolen").page
    page.get_by_text("was not begun in this browser").wait_for()
    assert "stolen" not in page.url
    console.check_accessibility()
    page.get_by_role("link", name="Back to sign-in").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
