"""Tests that users find, view, compare, share, download and delete pictures."""

from __future__ import annotations

from zipfile import ZipFile

import httpx
from playwright.sync_api import Page, expect

from moyin.jobs.protocol.wire import MAX_ARCHIVE_IDS
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack

# The template's seeds are the colours of its pictures.
_COLOURS = (0x1E90FF, 0x2E8B57, 0xE38A24)


def make_pictures(api: Api, count: int) -> None:
    """Render ``count`` pictures in one batch job."""
    api.render(
        template="swatch", inputs={"prompt": "gallery", "width": 96, "height": 64},
        batch={"seeds": [2003199 + 60000 * number for number in range(count)]},
    )  # fmt: skip


def open_gallery(console: ConsoleBrowser, gateway: RunningStack, api: Api, count: int) -> Page:
    page = console.sign_in_with_key(gateway.api_key).open("/gallery").page
    page.get_by_label("Project").fill(api.project)
    cards = page.get_by_role("list", name="Pictures").get_by_role("listitem")
    page.wait_for_url(f"**project={api.project}*")
    cards.nth(count - 1).wait_for()
    expect(cards).to_have_count(count)
    return page


def test_pictures_are_found_looked_at_and_compared(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    for colour in _COLOURS:
        inputs = {"prompt": "gallery", "seed": colour, "width": 96, "height": 64}
        api.render(template="swatch", inputs=inputs)
    page = open_gallery(console, gateway, api, 3)
    page.wait_for_load_state("networkidle")
    console.check_accessibility()
    console.screenshot("gallery-grid", also="ja")
    page.get_by_role("button", name="Open").first.click()
    viewer = page.get_by_role("dialog")
    viewer.get_by_role("cell", name="gallery").wait_for()
    first = viewer.locator("img").get_attribute("src")
    page.keyboard.press("ArrowRight")
    viewer.locator(f"img:not([src='{first}'])").wait_for()
    viewer.get_by_role("button", name="Show the graph").click()
    viewer.get_by_text("SaveImage").wait_for()
    console.check_accessibility()
    console.screenshot("gallery-viewer")
    page.keyboard.press("Escape")
    viewer.wait_for(state="detached")
    for number in range(2):
        page.get_by_role("checkbox", name="Select").nth(number).check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("dialog", name="Compare").locator("img")).to_have_count(2)
    console.check_accessibility()
    console.screenshot("gallery-compare")


def test_favourites_are_kept_for_the_tenant(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    make_pictures(api, 2)
    page = open_gallery(console, gateway, api, 2)
    page.get_by_role("button", name="as a favourite").first.click()
    page.get_by_role("button", name="from the favourites").wait_for()
    assert sorted(file["favourite"] for file in api.list_files()) == [False, True]
    page.get_by_role("switch", name="Favourites").check()
    page.wait_for_url("**favourite=true*")
    page.get_by_role("button", name="as a favourite").wait_for(state="detached")
    expect(page.get_by_role("list", name="Pictures").get_by_role("listitem")).to_have_count(1)


def test_a_link_works_without_an_account(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    make_pictures(api, 1)
    page = open_gallery(console, gateway, api, 1)
    page.get_by_role("button", name="Open").click()
    page.get_by_role("button", name="Share").click()
    expect(page.get_by_role("button", name="Make the link")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Copy")).to_be_focused()
    url = page.get_by_label("Link", exact=True).input_value()
    page.get_by_text("Works until").wait_for()
    console.check_accessibility()
    console.screenshot("gallery-share")
    response = httpx.get(url, timeout=60)
    assert (response.status_code, response.content[:4]) == (200, b"\x89PNG")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Share")).to_be_focused()


def test_no_more_files_are_chosen_than_an_archive_takes(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    make_pictures(api, 1)
    [file] = api.list_files()
    # So many renders would take minutes.
    files = [{**file, "id": f"file-{number}"} for number in range(MAX_ARCHIVE_IDS + 1)]
    page = console.sign_in_with_key(gateway.api_key).page
    page.route(
        "**/artifacts?**",
        lambda route: route.fulfill(json={"artifacts": files, "next_cursor": None}),
    )
    console.open("/gallery")
    boxes = page.get_by_role("list", name="Pictures").get_by_role("checkbox")
    expect(boxes).to_have_count(len(files))
    boxes.evaluate_all("(all) => all.forEach((box) => box.click())")
    page.get_by_text("At most 200 files can be downloaded at once").wait_for()
    expect(page.get_by_role("button", name="Download")).to_be_disabled()
    console.check_accessibility()
    boxes.first.uncheck()
    expect(page.get_by_role("button", name="Download")).to_be_enabled()


def test_many_are_downloaded_and_deleted(console: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    make_pictures(api, 2)
    page = open_gallery(console, gateway, api, 2)
    for box in page.get_by_role("checkbox", name="Select").all():
        box.check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "moyin.zip"
    with ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        contents = {archive.read(name) for name in archive.namelist()}
    assert contents == {api.send("GET", file["url"]).content for file in api.list_files()}
    assert len(archive.namelist()) == 2
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete for good?")
    dialog.get_by_text("1 job is deleted, with all the files that it made").wait_for()
    console.check_accessibility()
    console.screenshot("gallery-delete")
    assert len(api.list_files()) == 2
    dialog.get_by_role("button", name="Delete").click()
    page.get_by_text("No picture matches").wait_for()
    assert api.list_files() == api.list_jobs() == []
