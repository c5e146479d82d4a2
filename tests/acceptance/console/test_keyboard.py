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
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "member", "Mika")
    page = console.open().page
    keyboard = Keyboard(page)
    expect(page.get_by_label("Email")).to_be_focused()
    keyboard.reach(page.get_by_role("tab", name="Account"), "Shift+Tab")
    for arrow, name in (("ArrowRight", "API key"), ("ArrowLeft", "Account")):
        keyboard.press(arrow)
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name, selected=True)).to_be_visible()
    keyboard.reach(page.get_by_label("Email"))
    keyboard.type(email)
    keyboard.reach(page.get_by_label("Password").first)
    keyboard.type(PASSWORD)
    keyboard.press("Enter")

    menu = page.get_by_role("navigation", name="Pages")
    menu.wait_for()
    keyboard.move_focus()
    skip_link = page.get_by_role("link", name="Skip to the content")
    expect(skip_link).to_be_focused()
    expect(skip_link).to_be_in_viewport()
    keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    keyboard.reach(menu.get_by_role("link", name="Render"), "Shift+Tab")
    keyboard.press("Enter")
    page.get_by_role("heading", name="Render", exact=True).wait_for()
    expect(page.locator("#content")).to_be_focused()

    keyboard.reach(page.get_by_role("combobox", name="Template"))
    keyboard.choose_option("Colour swatch")
    keyboard.reach(page.get_by_label("Caption"))
    keyboard.type("by keyboard")
    keyboard.reach(page.get_by_label("Project"))
    keyboard.type("keyboard")
    keyboard.reach(page.get_by_role("button", name="Render 1 picture"))
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Results")).to_be_focused()

    picture = page.get_by_role("list", name="Results").get_by_role("button")
    picture.wait_for(timeout=240_000)
    keyboard.reach(picture)
    keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    expect(viewer.locator("img")).not_to_have_js_property("naturalWidth", 0)
    download_link = viewer.get_by_role("link", name="Download", exact=True)
    keyboard.reach(download_link)
    with page.expect_download() as download_info:
        keyboard.press("Enter")
    stored_picture = page.request.get(f"{console.url}{download_link.get_attribute('href')}").body()
    assert stored_picture.startswith(b"\x89PNG")
    assert download_info.value.path().read_bytes() == stored_picture
    keyboard.press("Escape")
    viewer.wait_for(state="detached")
    expect(picture).to_be_focused()

    keyboard.reach(page.get_by_role("button", name="Mika"), "Shift+Tab")
    keyboard.choose_item("Sign out")
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    expect(page.get_by_label("Email")).to_be_focused()


def test_dialogs_return_the_focus(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    email = api.create_member(organisation, "admin", "Aki")
    api.call("POST", f"/organisations/{organisation}/service-accounts", {"name": "farm"})
    page = console.sign_in(email, PASSWORD).open("/people").page
    keyboard = Keyboard(page)
    actions_button = page.get_by_role("button", name="Actions for farm")
    keyboard.reach(actions_button)
    keyboard.choose_item("Limits and budget")
    page.get_by_role("dialog").get_by_label("US dollars per day").wait_for()
    keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(actions_button).to_be_focused()

    # A dialog that another one follows.
    keyboard.choose_item("New key")
    expect(page.get_by_label("Name of the key")).to_be_focused()
    keyboard.type("nightly")
    keyboard.press("Enter")
    done_button = page.get_by_role("button", name="Done")
    keyboard.reach(done_button)
    keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(actions_button).to_be_focused()

    # Tabs keep the focus while arrows choose among them.
    keyboard.reach(page.get_by_role("tab", name="Members"), "Shift+Tab")
    keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Keys")).to_be_focused()
    page.wait_for_url("**/people/keys")
    page.get_by_role("cell", name="nightly").first.wait_for()
    keyboard.reach(page.get_by_role("button", name="Actions for nightly"))
    keyboard.choose_item("Revoke")
    keyboard.reach(page.get_by_role("dialog").get_by_role("button", name="Revoke"))
    keyboard.press("Enter")
    page.get_by_text("There are no keys here").wait_for()
    # The row is gone; the focus is on what had it before.
    expect(page.locator("main :focus")).to_have_count(1)

    keyboard.reach(page.get_by_role("banner").get_by_role("button", name="Language"), "Shift+Tab")
    keyboard.choose_item("日本語")
    expect(page.get_by_role("banner").get_by_role("button", name="言語")).to_be_focused()


def test_the_viewer_of_the_gallery_returns_the_focus(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    colour = secrets.randbelow(1 << 24)
    api.render(template="swatch", inputs={"prompt": "keys", "seed": colour, "width": 64})
    page = console.sign_in_with_key(gateway.api_key).open(f"/gallery?project={api.project}").page
    keyboard = Keyboard(page)
    picture = page.get_by_role("list", name="Pictures").get_by_role("button", name="Open")
    keyboard.reach(picture)
    keyboard.press("Enter")
    keyboard.reach(page.get_by_role("dialog").get_by_role("button", name="Share"))
    keyboard.press("Enter")
    keyboard.reach(page.get_by_role("button", name="Make the link"))
    keyboard.press("Escape")
    page.get_by_role("button", name="Make the link").wait_for(state="detached")
    expect(page.get_by_role("dialog").locator(":focus")).to_have_count(1)
    keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    expect(picture).to_be_focused()
    # The button that removes itself.
    keyboard.reach(page.get_by_role("checkbox", name="Select"))
    keyboard.press("Space")
    keyboard.reach(page.get_by_role("button", name="Select none"), "Shift+Tab")
    keyboard.press("Enter")
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
