"""Measures in Chromium when the console's pages have painted, for `benchmarks.console`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_TIMEOUT_MS = 120_000
# Chromium draws its own parts of a new tab, on the same processors.
_NEW_TAB_MS = 1_000
_READING_MS = 2_000
# `window.paintedAt` is the time at which all expected content was first painted: two frames after
# the change of the document that completed it. `window.clickedAt` is the time of the last click.
_WATCH = """
window.paintedAt = null;
const isComplete = () => {
  const { headings, rows } = window.wanted;
  // A button that has loaded more still fades its own loader out.
  if (document.querySelector(".mantine-Skeleton-root[data-visible], .mantine-Loader-root:not(button *)")) return false;
  const shown = new Set([...document.querySelectorAll("h2, h3")].map((one) => one.textContent));
  return headings.every((name) => shown.has(name)) &&
    Object.entries(rows).every(([selector, count]) => document.querySelectorAll(selector).length >= count);
};
let isPending = false;
const look = () => {
  if (window.paintedAt !== null || isPending || !isComplete()) return;
  isPending = true;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    isPending = false;
    if (isComplete()) window.paintedAt = performance.now();
    else look();
  }));
};
new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true });
document.addEventListener("click", () => {
  window.clickedAt = performance.now();
  window.paintedAt = null;
}, true);
"""


@dataclass(frozen=True, kw_only=True)
class ExpectedContent:
    """The content that a page must show: headings, and minimum numbers of rows by CSS selector."""

    headings: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)

    def to_script(self) -> str:
        return f"window.wanted = {json.dumps({'headings': self.headings, 'rows': self.rows})};"


@dataclass(frozen=True, kw_only=True)
class ListNavigation:
    """A way to open a list: the starting page, the click, and the rows that must be painted."""

    name: str
    start: str
    role: Any
    click: str
    wanted: ExpectedContent


_ROWS = "main tbody tr"
_MEMBERS = ExpectedContent(rows={_ROWS: 50})
LISTS = (
    ListNavigation(
        name="jobs", start="/account", role="link", click="Jobs",
        wanted=ExpectedContent(rows={_ROWS: 50}),
    ),
    ListNavigation(
        name="gallery", start="/account", role="link", click="Gallery",
        wanted=ExpectedContent(rows={"main [role=listitem]": 48}),
    ),
    ListNavigation(name="members", start="/account", role="link", click="People", wanted=_MEMBERS),
    ListNavigation(
        name="keys", start="/people/limits", role="tab", click="Keys",
        wanted=ExpectedContent(rows={_ROWS: 50}),
    ),
    ListNavigation(
        name="audit", start="/people/limits", role="tab", click="Audit log",
        wanted=ExpectedContent(rows={_ROWS: 50}),
    ),
    ListNavigation(
        name="usage", start="/account", role="link", click="Usage",
        wanted=ExpectedContent(rows={"main .usage-day": 7, _ROWS: 3}),
    ),
)  # fmt: skip
# The button that shows the next page of a list, and the number of rows that the list then has.
NEXT = {"jobs": ("Next", 50), "gallery": ("Load more", 96), "members": ("Load more", 100)}
OVERVIEWS = {
    "administrator": ExpectedContent(headings=("Money", "Render pools", "Text back ends")),
    "operator": ExpectedContent(
        headings=("Money", "Render pools", "Nodes and GPUs", "Text back ends")
    ),
}


class PageTimer:
    """Signs in with one browser, opens pages, and measures the seconds until they have painted."""

    def __init__(self, browser: Browser, url: str, credentials: dict[str, str]) -> None:
        self._browser = browser
        self._url = url
        self._credentials = credentials

    @contextmanager
    def open_profile(self) -> Iterator[BrowserContext]:
        """Yield a new browser profile that is signed in and has an empty cache."""
        context = self._browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
        context.set_default_timeout(_TIMEOUT_MS)
        try:
            response = context.request.post(f"{self._url}/accounts/session", data=self._credentials)
            assert response.ok, response.text()
            yield context
        finally:
            context.close()

    def time_overview(
        self, content: ExpectedContent, rounds: int
    ) -> tuple[list[float], list[float]]:
        """Return the seconds of first visits with an empty cache, and those of second visits.

        Args:
            content: the content that must have been painted.
        """
        cold_seconds: list[float] = []
        warm_seconds: list[float] = []
        for _ in range(rounds):
            with self.open_profile() as context:
                for seconds in (cold_seconds, warm_seconds):
                    page = _open_page(context, f"{self._url}/console/overview", content)
                    seconds.append(_read_paint(page))
                    page.close()
        return cold_seconds, warm_seconds

    def time_list(self, navigation: ListNavigation, rounds: int) -> tuple[list[float], list[float]]:
        """Return the seconds from a click to the rows of the first page, and of the next one.

        Each list has one value per round. From the second round on, the scripts are in the
        browser's cache; the rows never are.
        """
        list_seconds: list[float] = []
        next_page_seconds: list[float] = []
        with self.open_profile() as context:
            for _ in range(rounds):
                page = _open_page(
                    context, f"{self._url}/console{navigation.start}", navigation.wanted
                )
                link = page.get_by_role(navigation.role, name=navigation.click, exact=True)
                # The first click comes at once, later ones from a person who has read the page.
                if list_seconds:
                    page.wait_for_timeout(_READING_MS)
                link.click()
                list_seconds.append(_read_paint(page))
                if navigation.name in NEXT:
                    next_page_seconds.append(self._time_next_page(page, navigation))
                page.close()
        return list_seconds, next_page_seconds

    def _time_next_page(self, page: Page, navigation: ListNavigation) -> float:
        button_name, count = NEXT[navigation.name]
        [selector] = navigation.wanted.rows
        # The rows of the jobs' next page replace those of the first, which are faded meanwhile.
        rows = {f"{selector}:not([aria-busy=true] *)": count}
        page.evaluate(ExpectedContent(rows=rows).to_script())
        page.get_by_role("button", name=button_name, exact=True).click()
        return _read_paint(page)

    def record_requests(self, path: str, seconds: float) -> list[str]:
        """Return the requests that a page sends in the ``seconds`` after it has painted."""
        with self.open_profile() as context:
            page = _open_page(context, f"{self._url}/console{path}", OVERVIEWS["administrator"])
            _read_paint(page)
            seen_requests: list[str] = []
            page.on(
                "request", lambda request: seen_requests.append(f"{request.method} {request.url}")
            )
            page.wait_for_timeout(1000 * seconds)
            return [request.replace(self._url, "") for request in seen_requests]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium for the duration of the block."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is missing: run scripts/chromium.sh")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _open_page(context: BrowserContext, url: str, content: ExpectedContent) -> Page:
    page = context.new_page()
    page.add_init_script(content.to_script() + _WATCH)
    page.wait_for_timeout(_NEW_TAB_MS)
    page.goto(url)
    page.get_by_role("navigation").first.wait_for()
    return page


def _read_paint(page: Page) -> float:
    """Wait until the page has painted; return the seconds from the last click or the navigation."""
    # The page's policy forbids Playwright's own `wait_for_function`, which evaluates texts.
    deadline = time.monotonic() + _TIMEOUT_MS / 1000
    while page.evaluate("window.paintedAt === null"):
        if time.monotonic() > deadline:
            raise SystemExit(
                f"the page did not show the expected content in time:\n{page.inner_text('body')[:2000]}"
            )
        page.wait_for_timeout(20)
    milliseconds: float = page.evaluate("window.paintedAt - (window.clickedAt ?? 0)")
    return milliseconds / 1000
