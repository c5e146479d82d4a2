"""Tests that operators and admins manage users, keys and limits, and others see only their own."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


def choose(page: Page, row: str, act: str) -> None:
    """Choose an action in the menu of a table row."""
    page.get_by_role("button", name=f"Actions for {row}").click()
    page.get_by_role("menuitem", name=act).click()


def test_an_operator_makes_an_organisation(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    name, email = f"Studio {secrets.token_hex(4)}", f"{secrets.token_hex(6)}@example.com"
    page = console.sign_in_with_key(gateway.api_key).open("/people").page
    page.get_by_role("button", name="New organisation").click()
    page.get_by_label("Name of the organisation").fill(name)
    page.get_by_role("button", name="Create").click()
    page.get_by_text("Nobody is here yet").wait_for()
    console.check_accessibility()

    page.get_by_role("button", name="Invite").click()
    page.get_by_role("dialog").get_by_role("textbox", name="Email").fill(email)
    page.get_by_role("textbox", name="Name", exact=True).fill("Mika")
    # Somebody is to administer the organisation.
    expect(page.get_by_role("radio", name="Admin")).to_be_checked()
    console.check_accessibility()
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    link = page.get_by_test_id("secret").inner_text()
    assert link.startswith(f"{gateway.url}/console/reset#token=")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("cell", name="Mika").first.wait_for()

    page.get_by_role("button", name="New service account").click()
    page.get_by_label("Name of the service account").fill("bot")
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    page.get_by_role("cell", name="bot").first.wait_for()

    [organisation] = [
        o["id"] for o in api.call("GET", f"/organisations?limit=5&search={name}")["organisations"]
    ]
    members = {
        m["name"]: m for m in api.call("GET", f"/organisations/{organisation}/members")["members"]
    }
    assert (members["Mika"]["email"], members["Mika"]["role"]) == (email, "admin")
    assert members["bot"]["kind"] == "service"
    mika = members["Mika"]["id"]
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_role("radio", name="Member")).to_be_checked()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Enabled", exact=True).first).to_have_css("text-transform", "none")
    console.screenshot("people", also="ja")

    # The operator's own tenant is another one.
    choose(page, "bot", "New key")
    page.get_by_label("Name of the key").fill("pipeline")
    page.get_by_role("button", name="Create", exact=True).click()
    secret = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    assert api.call("GET", "/whoami", key=secret)["owner"] == organisation

    choose(page, "Mika", "Change role")
    page.get_by_role("radio", name="Viewer").check()
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_role("cell", name="Viewer").first.wait_for()
    assert api.call("GET", f"/users/{mika}")["role"] == "viewer"

    choose(page, "Mika", "Limits and budget")
    page.get_by_label("US dollars per day").fill("2.5")
    page.get_by_label("Requests per minute").fill("60")
    console.check_accessibility()
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="detached")
    limits = api.call("GET", f"/limits/user:{mika}")
    assert (limits["usd_per_day"], limits["requests_per_minute"]) == ("2.5", 60)
    choose(page, "Mika", "Limits and budget")
    page.get_by_text("$0.00 of $2.50").wait_for()
    page.get_by_role("button", name="Remove all limits").click()
    page.get_by_role("dialog", name="Remove all limits?").get_by_role(
        "button", name="Remove all limits"
    ).click()
    page.get_by_role("dialog").first.wait_for(state="detached")
    assert api.call("GET", f"/limits/user:{mika}")["usd_per_day"] is None

    choose(page, "Mika", "Disable")
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    page.get_by_role("cell", name="Disabled").first.wait_for()
    assert api.call("GET", f"/users/{mika}")["disabled"] is True
    choose(page, "Mika", "Enable")
    page.get_by_role("cell", name="Disabled").first.wait_for(state="detached")

    page.get_by_label("Search by name or email").fill("nobody is called so")
    page.get_by_text("No member matches").wait_for()
    page.get_by_role("tab", name="Limits and budgets").click()
    page.get_by_label("US dollars per month").fill("300")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("$0.00 of $300.00").wait_for()
    console.check_accessibility()
    assert api.call("GET", f"/limits/owner:{organisation}")["usd_per_month"] == "300"


def test_the_audit_log_is_filtered_and_saved(
    console: ConsoleBrowser, gateway: RunningStack, tmp_path: Path
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    email = api.new_member(organisation, "admin", "Aki")
    api.new_member(organisation, "member", "Sora")
    page = console.sign_in(email, PASSWORD).open("/people/audit").page
    page.get_by_text("member.create").first.wait_for()
    page.get_by_text("organisation.create").wait_for()
    page.get_by_role("combobox", name="Kind").click()
    page.get_by_role("option", name="Members").click()
    page.get_by_text("organisation.create").wait_for(state="detached")
    console.check_accessibility()
    console.screenshot("people-audit")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    download.value.save_as(tmp_path / "audit.json")
    entries = json.loads((tmp_path / "audit.json").read_text())
    assert {entry["action"] for entry in entries} == {"member.create"}
    assert {entry["owner"] for entry in entries} == {organisation}
    page.get_by_label("Changed").fill("nothing")
    page.get_by_text("Nothing was recorded").wait_for()


def test_keys_of_a_service_account(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    email = api.new_member(organisation, "admin", "Aki")
    api.call("POST", f"/organisations/{organisation}/service-accounts", {"name": "farm"})
    page = console.sign_in(email, PASSWORD).open("/people").page
    choose(page, "farm", "New key")
    page.get_by_label("Name of the key").fill("nightly")
    page.get_by_role("combobox", name="Scopes").press("ArrowDown")
    page.get_by_role("option", name="jobs:read").click()
    page.get_by_label("Name of the key").click()
    page.get_by_role("button", name="Create", exact=True).click()
    secret = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    identity = api.call("GET", "/whoami", key=secret)
    assert (identity["owner"], identity["scopes"]) == (organisation, ["jobs:read"])

    page.get_by_role("tab", name="Keys").click()
    page.get_by_role("cell", name="nightly").first.wait_for()
    page.get_by_role("cell", name="farm").first.wait_for()
    console.check_accessibility()
    console.screenshot("people-keys")
    choose(page, "nightly", "Replace secret")
    page.get_by_role("combobox", name="The old secret stays valid for").click()
    page.get_by_role("option", name="0 minutes").click()
    page.get_by_role("dialog").get_by_role("button", name="Replace secret").click()
    replaced = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    assert replaced != secret
    assert api.call("GET", "/whoami", key=replaced)["key_id"] == identity["key_id"]
    assert api.answer("GET", "/whoami", key=secret).status_code == 401
    choose(page, "nightly", "Revoke")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text("There are no keys here").wait_for()
    assert api.answer("GET", "/whoami", key=replaced).status_code == 401


def test_a_viewer_has_no_controls(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    email = api.new_member(organisation, "viewer", "Ren")
    page = console.sign_in(email, PASSWORD).open("/people").page
    page.get_by_role("cell", name="Ren").first.wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Members"]
    assert page.get_by_role("main").get_by_role("button").count() == 0
    console.open("/people/audit").page.get_by_role("cell", name="Ren").first.wait_for()
    console.check_accessibility()
