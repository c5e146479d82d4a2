"""Tests that the console can be used with the keyboard alone."""

from __future__ import annotations

import secrets

from playwright.sync_api import expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.acceptance.console.keyboard import Keyboard
from tests.stack import RunningStack

PAGES = (
    "/overview", "/jobs", "/render", "/gallery", "/chat", "/models", "/people", "/people/limits",
    "/people/audit", "/usage", "/operate", "/account",
)  # fmt: skip


def test_a_member_signs_in_renders_and_downloads(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    email = api.new_member(organisation, "member", "Mika")
    page = console.open().page
    keys = Keyboard(page)
    expect(page.get_by_label("Email")).to_be_focused()
    keys.reach(page.get_by_role("tab", name="Account"), "Shift+Tab")
    for arrow, name in (("ArrowRight", "API key"), ("ArrowLeft", "Account")):
        keys.press(arrow)
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name, selected=True)).to_be_visible()
    keys.reach(page.get_by_label("Email"))
    keys.type(email)
    keys.reach(page.get_by_label("Password").first)
    keys.type(PASSWORD)
    keys.press("Enter")

    menu = page.get_by_role("navigation", name="Pages")
    menu.wait_for()
    keys.tab()
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    keys.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    keys.reach(menu.get_by_role("link", name="Render"), "Shift+Tab")
    keys.press("Enter")
    page.get_by_role("heading", name="Render", exact=True).wait_for()
    expect(page.locator("#content")).to_be_focused()

    keys.reach(page.get_by_role("combobox", name="Template"))
    keys.choose_option("Colour swatch")
    keys.reach(page.get_by_label("Caption"))
    keys.type("by keyboard")
    keys.reach(page.get_by_label("Project"))
    keys.type("keyboard")
    keys.reach(page.get_by_role("button", name="Render 1 picture"))
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Results")).to_be_focused()

    picture = page.get_by_role("list", name="Results").get_by_role("button")
    picture.wait_for(timeout=240_000)
    keys.reach(picture)
    keys.press("Enter")
    viewer = page.get_by_role("dialog")
    expect(viewer.locator("img")).not_to_have_js_property("naturalWidth", 0)
    download = viewer.get_by_role("link", name="Download", exact=True)
    keys.reach(download)
    with page.expect_download() as download_info:
        keys.press("Enter")
    stored = page.request.get(f"{console.url}{download.get_attribute('href')}").body()
    assert stored.startswith(b"\x89PNG")
    assert download_info.value.path().read_bytes() == stored
    keys.press("Escape")
    viewer.wait_for(state="detached")
    expect(picture).to_be_focused()

    keys.reach(page.get_by_role("button", name="Mika"), "Shift+Tab")
    keys.choose_item("Sign out")
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    expect(page.get_by_label("Email")).to_be_focused()


def test_dialogs_return_the_focus(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.new_organisation()
    email = api.new_member(organisation, "admin", "Aki")
    api.call("POST", f"/organisations/{organisation}/service-accounts", {"name": "farm"})
    page = console.sign_in(email, PASSWORD).open("/people").page
    keys = Keyboard(page)
    actions = page.get_by_role("button", name="Actions for farm")
    keys.reach(actions)
    keys.choose_item("Limits and budget")
    page.get_by_role("dialog").get_by_label("US dollars per day").wait_for()
    keys.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(actions).to_be_focused()

    # A dialog that another one follows.
    keys.choose_item("New key")
    expect(page.get_by_label("Name of the key")).to_be_focused()
    keys.type("nightly")
    keys.press("Enter")
    done = page.get_by_role("button", name="Done")
    keys.reach(done)
    keys.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(actions).to_be_focused()

    # Tabs keep the focus while arrows choose among them.
    keys.reach(page.get_by_role("tab", name="Members"), "Shift+Tab")
    keys.press("ArrowRight")
    expect(page.get_by_role("tab", name="Keys")).to_be_focused()
    page.wait_for_url("**/people/keys")
    page.get_by_role("cell", name="nightly").first.wait_for()
    keys.reach(page.get_by_role("button", name="Actions for nightly"))
    keys.choose_item("Revoke")
    keys.reach(page.get_by_role("dialog").get_by_role("button", name="Revoke"))
    keys.press("Enter")
    page.get_by_text("There are no keys here").wait_for()
    # The row is gone; the focus is on what had it before.
    expect(page.locator("main :focus")).to_have_count(1)

    keys.reach(page.get_by_role("banner").get_by_role("button", name="Language"), "Shift+Tab")
    keys.choose_item("日本語")
    expect(page.get_by_role("banner").get_by_role("button", name="言語")).to_be_focused()


def test_the_viewer_of_the_gallery_returns_the_focus(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    colour = secrets.randbelow(1 << 24)
    api.render(template="swatch", inputs={"prompt": "keys", "seed": colour, "width": 64})
    page = console.sign_in_with_key(gateway.api_key).open(f"/gallery?project={api.project}").page
    keys = Keyboard(page)
    picture = page.get_by_role("list", name="Pictures").get_by_role("button", name="Open")
    keys.reach(picture)
    keys.press("Enter")
    keys.reach(page.get_by_role("dialog").get_by_role("button", name="Share"))
    keys.press("Enter")
    keys.reach(page.get_by_role("button", name="Make the link"))
    keys.press("Escape")
    page.get_by_role("button", name="Make the link").wait_for(state="detached")
    expect(page.get_by_role("dialog").locator(":focus")).to_have_count(1)
    keys.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(picture).to_be_focused()
    # The button that removes itself.
    keys.reach(page.get_by_role("checkbox", name="Select"))
    keys.press("Space")
    keys.reach(page.get_by_role("button", name="Select none"), "Shift+Tab")
    keys.press("Enter")
    expect(picture).to_be_focused()


def test_tab_reaches_every_control_of_every_page(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    job = api.render(template="swatch", inputs={"prompt": "tab", "seed": 7, "width": 64})
    page = console.sign_in_with_key(gateway.api_key).page
    for path in (*PAGES, f"/jobs/{job['id']}"):
        console.open(path)
        page.locator("main h2").first.wait_for()
        page.wait_for_load_state("load")
        expect(page.locator("main .mantine-Skeleton-root[data-visible]")).to_have_count(0)
        Keyboard(page).check_whole_page()
