"""Tests layout and accessibility of each page as it opens; other tests check its other states."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.acceptance.console.browser import ROOT, ConsoleBrowser, open_browser
from tests.acceptance.console.calls import Api
from tests.acceptance.console.layout import LANGUAGES, PHONE, choose_language, find_misfits
from tests.stack import RunningStack

PATHS = re.findall(r'path: "(/[a-z]+)"', (ROOT / "console/src/pages.ts").read_text())
TABS = (
    *(f"/models?tab={tab}" for tab in ("backends", "route", "comfyui", "quality")),
    "/people/audit",
    "/nothing",
)
_LOADING = ".mantine-Loader-root, .mantine-Skeleton-root[data-visible]"
_FIND_MISSING = (
    "() => document.body.innerText.match(/undefined|\\[object Object\\]|NaN|Invalid Date/g) ?? []"
)


@pytest.fixture(scope="module")
def operator(
    gateway: RunningStack, console_tools: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsoleBrowser]:
    """Provide a browser with a phone's window, signed in as an operator, who sees every page.

    The tests of single pages let axe check English on a desktop; these let it check Japanese on a
    phone.
    """
    with open_browser(gateway.url, tmp_path_factory.mktemp("layout")) as browser:
        browser.sign_in_with_key(gateway.api_key).page.set_viewport_size(PHONE)
        yield browser


def test_paths_of_pages_are_read_from_the_sources() -> None:
    assert len(PATHS) >= 10
    assert {"/overview", "/jobs", "/operate"} <= set(PATHS)


def test_misfits_and_undocumented_requests_are_noticed(operator: ConsoleBrowser) -> None:
    page = operator.open("/people").page
    label = page.get_by_role("button", name="New organisation").locator(".mantine-Button-label")
    label.wait_for()
    assert find_misfits(page) == []
    label.evaluate("(label) => Object.assign(label.style, {width: '1em', overflow: 'hidden'})")
    page.evaluate("document.body.append(Object.assign(document.createElement('hr'), {id: 'wide'}))")
    page.locator("#wide").evaluate("(element) => { element.style.width = '2000px'; }")
    assert find_misfits(page) == ["cut off: New organisation", "the page is wider than the window"]
    for call in ("GET /jobs/x/nothing", "POST /accounts/whoami", "GET /accounts/whoami"):
        page.evaluate("([method, path]) => fetch(path, {method}).then(() => null)", call.split())
    undocumented_requests = [text for text in operator.mistakes if "undocumented" in text]
    assert undocumented_requests == [
        "request to an undocumented route: GET /jobs/x/nothing",
        "request to an undocumented route: POST /accounts/whoami",
    ]
    operator.check_clean("undocumented", "status of 40")


@pytest.mark.parametrize("path", [*PATHS, *TABS])
def test_the_content_of_a_page_fits(operator: ConsoleBrowser, path: str) -> None:
    check_page(operator, path)


def test_the_content_of_a_jobs_page_fits(operator: ConsoleBrowser, gateway: RunningStack) -> None:
    api = Api(gateway)
    request = {"kind": "http", "request": {"path": "/nowhere"}}
    job = api.send("POST", "/jobs", json=request).json()["id"]
    check_page(operator, f"/jobs/{job}")


def test_the_content_of_the_sign_in_page_fits(operator: ConsoleBrowser) -> None:
    """Check the sign-in page; this must be the module's last test, because it ends the session."""
    operator.page.context.clear_cookies()
    check_page(operator, "/")


def check_page(console: ConsoleBrowser, path: str) -> None:
    page = console.open(path).page
    page.locator("main, form").first.wait_for()
    expect(page.locator(_LOADING)).to_have_count(0)
    for language in LANGUAGES:
        choose_language(page, language)
        assert page.evaluate(_FIND_MISSING) == [], f"{path} in {language} shows a missing value"
    console.check_accessibility()
    console.check_clean()
