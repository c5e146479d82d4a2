"""Tests that users find, view, compare, share, download and delete pictures."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from zipfile import ZipFile

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from moyin.domain.identity import JOBS_READ, JOBS_WRITE, ORG_READ
from moyin.jobs.protocol.wire import MAX_ARCHIVE_IDS
from moyin.store.keys import KeyStore
from moyin.store.schema import artifacts
from moyin.store.sql import Database, now
from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.acceptance.text_gateway import PNG
from tests.stack import RunningStack
from tests.videos import make_sound, make_video
from tests.waiting import eventually_blocking

# The template's seeds are the colours of its pictures.
_COLOURS = (0x1E90FF, 0x2E8B57, 0xE38A24)


def make_pictures(api: Api, count: int) -> None:
    """Render ``count`` pictures as one job."""
    api.render(
        template="swatch", inputs={"prompt": "gallery", "width": 96, "height": 64},
        batch={"seeds": [2003199 + 60000 * number for number in range(count)]},
    )  # fmt: skip


@dataclass(frozen=True)
class Studio:
    """An organisation with three pictures of two people, a video and a sound.

    Mika made the first picture three days ago. Sora made the second, and from it the third, with
    the template `resize`.

    Attributes:
        email: Mika's email.
        key: an API key that belongs to the organisation and not to a person.
    """

    email: str
    key: str


@pytest.fixture
def studio(gateway: RunningStack) -> Studio:
    """Provide a studio; tests request it before the browser, which blocks other event loops."""
    accounts = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = accounts.create_organisation()
    email = accounts.create_member(organisation, "member", "Mika")
    _, mika_key = accounts.create_key(email)
    _, sora_key = accounts.create_key(accounts.create_member(organisation, "member", "Sora"))
    mika, sora = Api(gateway, mika_key), Api(gateway, sora_key)
    swatch_inputs = {"prompt": "filter", "width": 64}
    pictures = [
        api.render(template="swatch", inputs={**swatch_inputs, "seed": seed})["artifacts"][0]["id"]
        for seed, api in enumerate((mika, sora))
    ]
    resize_inputs = {"image": pictures[1], "width": 32, "height": 32}
    sora.render(template="resize", inputs=resize_inputs)
    mika.upload("clip.webm", make_video("webm", "libvpx-vp9"), "video/webm")
    mika.upload("song.m4a", make_sound(), "audio/mp4")

    async def age_picture_and_create_key() -> str:
        database = Database(gateway.settings.sql_url)
        try:
            await database.execute(
                artifacts.update()
                .where(artifacts.c.id == pictures[0])
                .values(created_at=now() - timedelta(days=3))
            )
            scopes = (JOBS_READ, JOBS_WRITE, ORG_READ)
            return (await KeyStore(database).create(organisation, "all's", scopes=scopes))[1]
        finally:
            await database.close()

    return Studio(email=email, key=asyncio.run(age_picture_and_create_key()))


def choose_option(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


def expect_files(page: Page, count: int) -> None:
    expect(page.get_by_role("list", name="Pictures").get_by_role("listitem")).to_have_count(count)


def test_each_filter_finds_its_files(
    studio: Studio, console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in(studio.email, PASSWORD).open("/gallery").page
    expect_files(page, 3)
    clear_button = page.get_by_role("button", name="Clear the filters")
    expect(clear_button).to_have_count(0)
    choose_option(page, "Template", "Resize a picture")
    expect_files(page, 1)
    clear_button.click()
    expect_files(page, 3)

    person_field = page.get_by_role("combobox", name="Person")
    person_field.fill("sor")
    page.get_by_role("option", name="Sora", exact=True).click()
    expect_files(page, 2)
    # The address has the id alone.
    page.reload()
    expect(person_field).to_have_value("Sora")
    expect_files(page, 2)
    choose_option(page, "Template", "Colour swatch")
    expect_files(page, 1)
    console.check_accessibility()
    clear_button.click()
    expect_files(page, 3)
    expect(person_field).to_have_value("")
    choose_option(page, "Person", "Me")
    expect_files(page, 1)
    person_field.fill("nobody is called so")
    page.get_by_role("listbox").get_by_role("option", name="Sora").wait_for(state="detached")
    clear_button.click()

    # Days are those of the person who looks.
    days = page.evaluate(
        "[0, 1, 2, 3, 4].map((ago) => new Date(Date.now() - ago * 864e5).toLocaleDateString('sv'))"
    )
    first_day = page.get_by_label("From", exact=True)
    last_day = page.get_by_label("To", exact=True)
    first_day.fill(days[1])
    expect_files(page, 2)
    first_day.fill(days[3])
    expect_files(page, 3)
    last_day.fill(days[2])
    expect_files(page, 1)
    last_day.fill(days[4])
    page.get_by_text("No picture matches").wait_for()
    clear_button.click()
    expect_files(page, 3)

    choose_option(page, "Kind", "Videos")
    expect_playback(page, "video")
    choose_option(page, "Kind", "Audio")
    console.check_accessibility()
    expect_playback(page, "audio")
    choose_option(page, "Kind", "All files")
    expect_files(page, 5)

    # A key that is no person's.
    page.context.clear_cookies()
    page = console.sign_in_with_key(studio.key).open("/gallery").page
    page.get_by_role("combobox", name="Person").click()
    page.get_by_role("option", name="Sora", exact=True).wait_for()
    assert page.get_by_role("option", name="Me", exact=True).count() == 0
    page.get_by_role("combobox", name="Person").fill("nobody is called so")
    page.get_by_text("Nobody is called so").wait_for()
    page.get_by_role("combobox", name="Person").fill("mik")
    page.get_by_role("option", name="Mika", exact=True).click()
    expect_files(page, 1)
    console.check_accessibility()

    api = Api(gateway, studio.key)
    for number in range(57):
        api.upload(f"{number}.png", PNG, "image/png")
    console.open("/gallery")
    expect_files(page, 48)
    page.get_by_role("button", name="Load more").click()
    expect_files(page, 60)
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)


def get_picture_address(viewer: Locator) -> str:
    """Return the address of the picture in the large view."""
    return str(viewer.locator("img").get_attribute("src"))


def expect_playback(page: Page, element: str) -> None:
    """Assert that the gallery shows one file, and that the browser plays it in the large view.

    Args:
        element: the HTML element that plays the file, such as ``video``.
    """
    expect_files(page, 1)
    page.get_by_role("button", name="Open").click()
    media = page.get_by_role("dialog").locator(element)
    expect(media).to_have_js_property("readyState", 4)
    assert media.evaluate("(media) => media.duration") > 0
    page.get_by_text("Uploaded, not made by a job").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")


def open_gallery(console: ConsoleBrowser, gateway: RunningStack, api: Api, count: int) -> Page:
    page = console.sign_in_with_key(gateway.api_key).open("/gallery").page
    page.get_by_label("Project").fill(api.project)
    cards = page.get_by_role("list", name="Pictures").get_by_role("listitem")
    page.wait_for_url(f"**project={api.project}*")
    cards.nth(count - 1).wait_for()
    expect(cards).to_have_count(count)
    return page


def test_pictures_are_found_viewed_and_compared(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    for colour in _COLOURS:
        inputs = {"prompt": "gallery", "seed": colour, "width": 96, "height": 64}
        api.render(template="swatch", inputs=inputs)
    page = open_gallery(console, gateway, api, 3)
    page.wait_for_load_state("networkidle")
    console.check_accessibility()
    console.screenshot("gallery-grid", also_in="ja")
    page.get_by_role("button", name="Open").first.click()
    viewer = page.get_by_role("dialog")
    viewer.get_by_role("cell", name="gallery").wait_for()
    first_source = viewer.locator("img").get_attribute("src")
    page.keyboard.press("ArrowRight")
    viewer.locator(f"img:not([src='{first_source}'])").wait_for()
    viewer.get_by_role("button", name="Show the graph").click()
    viewer.get_by_text("SaveImage").wait_for()
    console.check_accessibility()
    console.screenshot("gallery-viewer")
    [shown_file] = [
        file for file in api.list_files() if f"/{file['id']}" in get_picture_address(viewer)
    ]
    graph = api.get(f"/jobs/{shown_file['job']}/graph")
    with page.expect_download() as download:
        viewer.get_by_role("link", name="Download the graph").click()
    assert json.loads(download.value.path().read_text()) == graph
    viewer.get_by_role("button", name="as a favourite").click()
    viewer.get_by_role("button", name="from the favourites").wait_for()
    assert [file["id"] for file in api.list_files() if file["favourite"]] == [shown_file["id"]]
    page.keyboard.press("Escape")
    viewer.wait_for(state="detached")
    for number in range(2):
        page.get_by_role("checkbox", name="Select").nth(number).check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("dialog", name="Compare").locator("img")).to_have_count(2)
    console.check_accessibility()
    console.screenshot("gallery-compare")
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Open").first.click()
    [shown_file] = [
        file for file in api.list_files() if f"/{file['id']}" in get_picture_address(viewer)
    ]
    viewer.get_by_role("button", name="Delete").click()
    console.check_accessibility()
    confirmation = page.get_by_role("dialog", name="Delete for good?")
    confirmation.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").wait_for(state="detached")
    expect_files(page, 2)
    # It was one of those that are selected.
    page.get_by_text("1 selected").wait_for()
    assert shown_file["job"] not in [job["id"] for job in api.list_jobs()]


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

    # The choice of another duration takes the link away.
    choose_option(page, "Expires after", "10 minutes")
    page.get_by_text("Works until").wait_for(state="detached")
    duration = timedelta(minutes=10)
    request_bodies: list[dict[str, int]] = []

    def record_body(route: Route) -> None:
        request_bodies.append(route.request.post_data_json)
        route.continue_()

    page.route("**/link", record_body)
    earliest_expiry = now().replace(microsecond=0) + duration
    with page.expect_response("**/link") as link_response:
        page.get_by_role("button", name="Make the link").click()
    latest_expiry = now() + duration
    assert request_bodies == [{"expires_in": duration.seconds}]
    page.unroute("**/link", record_body)
    expires_at = datetime.fromisoformat(link_response.value.json()["expires_at"])
    assert earliest_expiry <= expires_at <= latest_expiry
    shown_time = page.evaluate(
        "([time, style]) => new Intl.DateTimeFormat('en', style).format(new Date(time))",
        [expires_at.isoformat(), {"dateStyle": "medium", "timeStyle": "medium"}],
    )
    page.get_by_text(f"Works until {shown_time}.").wait_for()

    def shorten_expiry(route: Route) -> None:
        route.continue_(post_data=json.dumps({"expires_in": 1}))

    # One of the console's own would outlast the test.
    page.route("**/link", shorten_expiry)
    choose_option(page, "Expires after", "1 day")
    page.get_by_role("button", name="Make the link").click()
    page.get_by_text("Works until").wait_for()
    url = page.get_by_label("Link", exact=True).input_value()
    page.unroute("**/link", shorten_expiry)
    expired_response = eventually_blocking(
        lambda: answer if (answer := httpx.get(url, timeout=60)).is_error else None
    )
    assert (expired_response.status_code, expired_response.json()["code"]) == (401, "invalid_token")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Share")).to_be_focused()


def test_a_selection_too_large_for_an_archive_cannot_be_downloaded(
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
    checkboxes = page.get_by_role("list", name="Pictures").get_by_role("checkbox")
    expect(checkboxes).to_have_count(len(files))
    checkboxes.evaluate_all("(all) => all.forEach((box) => box.click())")
    page.get_by_text("At most 200 files can be downloaded at once").wait_for()
    expect(page.get_by_role("button", name="Download")).to_be_disabled()
    console.check_accessibility()
    checkboxes.first.uncheck()
    expect(page.get_by_role("button", name="Download")).to_be_enabled()


def test_several_pictures_are_downloaded_and_deleted(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    make_pictures(api, 2)
    page = open_gallery(console, gateway, api, 2)
    for checkbox in page.get_by_role("checkbox", name="Select").all():
        checkbox.check()
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
