"""Tests that operators and admins manage users, keys and limits, and others see only their own."""

from __future__ import annotations

import csv
import json
import re
import secrets
from datetime import datetime
from pathlib import Path

from playwright.sync_api import Page, expect

from moyin.domain.account import ROLE_SCOPES, Role
from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack


def choose_action(page: Page, row: str, action: str) -> None:
    """Choose an action in the menu of a table row."""
    page.get_by_role("button", name=f"Actions for {row}").click()
    page.get_by_role("menuitem", name=action).click()


def test_an_operator_creates_and_manages_an_organisation(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
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
    mika_id = members["Mika"]["id"]
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_role("radio", name="Member")).to_be_checked()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Enabled", exact=True).first).to_have_css("text-transform", "none")
    console.screenshot("people", also_in="ja")

    # The operator's own tenant is another one.
    choose_action(page, "bot", "New key")
    page.get_by_label("Name of the key").fill("pipeline")
    page.get_by_role("button", name="Create", exact=True).click()
    secret = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    assert api.call("GET", "/whoami", key=secret)["owner"] == organisation

    choose_action(page, "Mika", "Change role")
    page.get_by_role("radio", name="Viewer").check()
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_role("cell", name="Viewer").first.wait_for()
    assert api.call("GET", f"/users/{mika_id}")["role"] == "viewer"

    choose_action(page, "Mika", "Limits and budget")
    page.get_by_label("US dollars per day").fill("2.5")
    page.get_by_label("Requests per minute").fill("60")
    console.check_accessibility()
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="detached")
    limits = api.call("GET", f"/limits/user:{mika_id}")
    assert (limits["usd_per_day"], limits["requests_per_minute"]) == ("2.5", 60)
    choose_action(page, "Mika", "Limits and budget")
    page.get_by_text("$0.00 of $2.50").wait_for()
    page.get_by_role("button", name="Remove all limits").click()
    page.get_by_role("dialog", name="Remove all limits?").get_by_role(
        "button", name="Remove all limits"
    ).click()
    page.get_by_role("dialog").first.wait_for(state="detached")
    assert api.call("GET", f"/limits/user:{mika_id}")["usd_per_day"] is None

    choose_action(page, "Mika", "Send another invitation")
    second_link = page.get_by_test_id("secret").inner_text()
    console.check_accessibility()
    page.get_by_role("button", name="Done").click()
    first_token, second_token = (
        re.search(r"#token=([^&]+)", text).group(1)  # type: ignore[union-attr]
        for text in (link, second_link)
    )
    body = {"password": PASSWORD}
    assert api.send("POST", "/password/reset", {"token": first_token, **body}).status_code == 401
    api.call("POST", "/password/reset", {"token": second_token, **body})
    assert api.call("POST", "/login", {"email": email, **body})["user"]["id"] == mika_id

    choose_action(page, "Mika", "Disable")
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    page.get_by_role("cell", name="Disabled").first.wait_for()
    assert api.call("GET", f"/users/{mika_id}")["disabled"] is True
    choose_action(page, "Mika", "Enable")
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
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "admin", "Aki")
    api.create_member(organisation, "member", "Sora")
    aki_id, key = api.create_key(email, scopes=sorted(ROLE_SCOPES[Role.ADMIN]))
    path = f"/organisations/{organisation}/service-accounts"
    api.call("POST", path, {"name": "farm"}, key=key)
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
    audit_entries = json.loads((tmp_path / "audit.json").read_text())
    assert {entry["action"] for entry in audit_entries} == {"member.create"}
    assert {entry["owner"] for entry in audit_entries} == {organisation}
    page.get_by_role("combobox", name="Kind").click()
    page.get_by_role("option", name="Everything").click()
    page.get_by_text("organisation.create").wait_for()
    page.get_by_label("Who").fill(aki_id)
    page.get_by_text("organisation.create").wait_for(state="detached")
    page.get_by_text("service_account.create").wait_for()
    console.check_accessibility()
    days = page.evaluate(
        "[-1, 0, 1].map((day) => new Date(Date.now() + day * 864e5).toLocaleDateString('sv'))"
    )
    for label, day in (("From", days[2]), ("To", days[0])):
        page.get_by_label(label, exact=True).fill(day)
        page.get_by_text("Nothing was recorded").wait_for()
        page.get_by_label(label, exact=True).fill(days[1])
        page.get_by_text("service_account.create").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    audit_entries = api.call("GET", f"/audit?owner={organisation}&actor={aki_id}")["entries"]
    assert [row["id"] for row in rows] == [entry["id"] for entry in audit_entries]
    assert [json.loads(row["details"]) for row in rows] == [
        entry["details"] for entry in audit_entries
    ]
    page.get_by_label("Changed").fill("nothing")
    page.get_by_text("Nothing was recorded").wait_for()


def test_keys_of_a_service_account_are_created_limited_replaced_and_revoked(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "admin", "Aki")
    api.call("POST", f"/organisations/{organisation}/service-accounts", {"name": "farm"})
    page = console.sign_in(email, PASSWORD).open("/people").page
    choose_action(page, "farm", "New key")
    page.get_by_label("Name of the key").fill("nightly")
    page.get_by_role("combobox", name="Scopes").press("ArrowDown")
    page.get_by_role("option", name="jobs:read").click()
    page.get_by_label("Name of the key").click()
    expiry_field = page.get_by_label("Expires")
    last_day = page.evaluate("new Date(Date.now() + 30 * 864e5).toLocaleDateString('sv')")
    expiry_field.fill(last_day)
    console.check_accessibility()
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
    [key] = api.call("GET", f"/keys?owner={organisation}")["keys"]
    # The end of that day, where the person is.
    assert (
        datetime.fromisoformat(key["expires_at"]).astimezone()
        == datetime.fromisoformat(f"{last_day}T23:59:59").astimezone()
    )
    # Rounded.
    expiry_text = re.compile("in 3[01] days")
    page.get_by_role("row", name="nightly").get_by_role("cell", name=expiry_text).wait_for()

    choose_action(page, "nightly", "Limits and budget")
    dialog = page.get_by_role("dialog", name="Limits of nightly")
    for label, field_value in (
        ("US dollars per day", "0.5"), ("US dollars per month", "9"), ("Requests per minute", "6"),
        ("Tokens per minute", "7000"), ("Requests at the same time", "2"), ("Open jobs", "3"),
        ("Nodes of a graph", "800"), ("Links of a graph", "4000"), ("Bytes of a graph", "1000000"),
    ):  # fmt: skip
        dialog.get_by_label(label).fill(field_value)
    dialog.get_by_role("combobox", name="Best priority of jobs").click()
    page.get_by_role("option", name="4", exact=True).click()
    for label, field_values in (
        ("Render pools", ("large", "small")), ("Allowed node classes", ("Save*", "Load*")),
        ("Refused node classes", ("LoadVideo",)),
    ):  # fmt: skip
        field = dialog.locator("input").and_(dialog.get_by_label(label))
        for field_value in field_values:
            field.fill(field_value)
            field.press("Enter")
    console.check_accessibility()
    dialog.get_by_role("button", name="Save").click()
    dialog.wait_for(state="detached")
    limits = {
        "usd_per_day": "0.5", "usd_per_month": "9", "requests_per_minute": 6,
        "tokens_per_minute": 7000, "concurrent_requests": 2, "open_jobs": 3, "best_priority": 4,
        "pools": ["large", "small"], "allowed_nodes": ["Save*", "Load*"],
        "denied_nodes": ["LoadVideo"], "graph_nodes": 800, "graph_links": 4_000,
        "graph_bytes": 1_000_000,
    }  # fmt: skip
    subject = f"key:{key['id']}"
    assert api.call("GET", f"/limits/{subject}") == {"subject": subject, **limits}
    choose_action(page, "nightly", "Limits and budget")
    # One that is emptied is gone, and the others stay.
    dialog.get_by_label("Open jobs").fill("")
    dialog.get_by_role("button", name="Save").click()
    dialog.wait_for(state="detached")
    limits["open_jobs"] = None
    assert api.call("GET", f"/limits/{subject}") == {"subject": subject, **limits}

    choose_action(page, "nightly", "Replace secret")
    page.get_by_role("combobox", name="The old secret stays valid for").click()
    page.get_by_role("option", name="0 minutes").click()
    page.get_by_role("dialog").get_by_role("button", name="Replace secret").click()
    new_secret = page.get_by_test_id("secret").inner_text()
    page.get_by_role("button", name="Done").click()
    assert new_secret != secret
    assert api.call("GET", "/whoami", key=new_secret)["key_id"] == identity["key_id"]
    assert api.send("GET", "/whoami", key=secret).status_code == 401
    choose_action(page, "nightly", "Revoke")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text("There are no keys here").wait_for()
    assert api.send("GET", "/whoami", key=new_secret).status_code == 401
    page.get_by_role("switch", name="Valid keys only").uncheck()
    page.get_by_role("row", name="nightly").get_by_text("Revoked").wait_for()
    search_field = page.get_by_label("Search keys by name")
    search_field.fill("daily")
    page.get_by_text("There are no keys here").wait_for()
    search_field.fill("night")
    page.get_by_role("row", name="nightly").wait_for()
    console.check_accessibility()


def test_long_lists_are_loaded_page_by_page(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "admin", "Aki")
    count = 59
    for number in range(count):
        path = f"/organisations/{organisation}/service-accounts"
        user = api.call("POST", path, {"name": f"bot {number}"})["id"]
        api.call("POST", "/keys", {"name": f"key {number}", "user": user})
    page = console.sign_in(email, PASSWORD).open("/people").page
    rows = page.locator("tbody").get_by_role("row")
    more_button = page.get_by_role("button", name="Load more")
    for tab, newest_name, expected_count in (
        ("Members", "bot 58", count + 1),
        ("Keys", "key 58", count),
    ):
        page.get_by_role("tab", name=tab).click()
        page.get_by_role("cell", name=newest_name).first.wait_for()
        expect(rows).to_have_count(50)
        more_button.click()
        expect(rows).to_have_count(expected_count)
        expect(more_button).to_have_count(0)
        console.check_accessibility()
    page.get_by_role("tab", name="Audit log").click()
    page.get_by_text("key.create").first.wait_for()
    audit_entries = api.call("GET", f"/audit?limit=200&owner={organisation}")["entries"]
    assert len(audit_entries) > 2 * count
    for expected_count in (50, 100, len(audit_entries)):
        expect(rows).to_have_count(expected_count)
        if expected_count < len(audit_entries):
            more_button.click()
    expect(more_button).to_have_count(0)
    # The oldest one.
    page.get_by_text("organisation.create").wait_for()


def test_a_viewer_has_no_controls(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "viewer", "Ren")
    page = console.sign_in(email, PASSWORD).open("/people").page
    page.get_by_role("cell", name="Ren").first.wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Members"]
    assert page.get_by_role("main").get_by_role("button").count() == 0
    console.open("/people/audit").page.get_by_role("cell", name="Ren").first.wait_for()
    console.check_accessibility()


def test_operators_are_offered_the_scope_for_metrics(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    arguments = ("keys", "create", "night shift", "--scope", "keys", "--scope", "operator")
    operator_key = gateway.run(*arguments).stdout.strip()
    page = console.sign_in_with_key(operator_key).open("/people/keys").page
    page.get_by_role("button", name="New key").click()
    page.get_by_role("combobox", name="Scopes").press("ArrowDown")
    page.get_by_role("option", name="metrics").wait_for()
    assert page.get_by_role("option").all_inner_texts() == ["keys", "metrics", "operator"]
