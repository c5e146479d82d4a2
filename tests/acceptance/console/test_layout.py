"""Tests the layout of every page in both languages, on a desktop and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.acceptance.console.browser import ROOT, ConsoleBrowser, open_browser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack

PATHS = re.findall(r'path: "(/[a-z]+)"', (ROOT / "console/src/pages.ts").read_text())
TABS = (
    *(f"/models?tab={tab}" for tab in ("backends", "route", "comfyui", "quality")),
    "/people/audit",
    "/nothing",
)
WIDTHS = {1280: 800, 390: 844}
LANGUAGES = ("en", "ja")
_LOADING = ".mantine-Loader-root, .mantine-Skeleton-root[data-visible]"
# Labels that Mantine cuts off when they are wider than their control, and headings of tables.
_FIND_CLIPPED = """
() => [...document.querySelectorAll(
  ".mantine-Button-label, .mantine-Tabs-tabLabel, .mantine-SegmentedControl-innerLabel, "
  + ".mantine-NavLink-label, [role=tab], th"
)].filter((label) => label.clientWidth > 0 && label.scrollWidth > label.clientWidth + 1)
  .map((label) => label.textContent)
"""
_FIND_MISSING = (
    "() => document.body.innerText.match(/undefined|\\[object Object\\]|NaN|Invalid Date/g) ?? []"
)


@pytest.fixture(scope="module")
def operator(
    gateway: RunningStack, console_tools: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsoleBrowser]:
    """Provide a browser that is signed in as an operator, because operators see every page."""
    with open_browser(gateway.url, tmp_path_factory.mktemp("layout")) as browser:
        yield browser.sign_in_with_key(gateway.api_key)


def test_all_pages_are_known() -> None:
    assert len(PATHS) >= 10
    assert {"/overview", "/jobs", "/operate"} <= set(PATHS)


@pytest.mark.parametrize("path", [*PATHS, *TABS])
def test_a_page_fits_in_both_languages(operator: ConsoleBrowser, path: str) -> None:
    check_languages(operator, path)


def test_the_page_of_a_job_fits_in_both_languages(
    operator: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    request = {"kind": "http", "request": {"path": "/nowhere"}}
    job = api.send("POST", "/jobs", json=request).json()["id"]
    check_languages(operator, f"/jobs/{job}")


def test_sign_in_page_fits_in_both_languages(operator: ConsoleBrowser) -> None:
    """Check the sign-in page; this must be the module's last test, because it ends the session."""
    operator.page.context.clear_cookies()
    check_languages(operator.open(), "/")


def check_languages(console: ConsoleBrowser, path: str) -> None:
    page = console.page
    for language in LANGUAGES:
        page.set_viewport_size({"width": 1280, "height": WIDTHS[1280]})
        page.evaluate("(name) => localStorage.setItem('moyin.language', name)", language)
        console.open(path)
        expect(page.locator("html")).to_have_attribute("lang", language)
        for width, height in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            page.locator("main, form").first.wait_for()
            expect(page.locator(_LOADING)).to_have_count(0)
            place = f"{path} in {language} at {width}"
            console.wait_until_it_fits(width, place, _FIND_CLIPPED)
            assert page.evaluate(_FIND_MISSING) == [], place
            console.check_accessibility()
    console.check_clean()
