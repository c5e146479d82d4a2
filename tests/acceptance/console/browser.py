"""Drives the console in Chromium, and records errors and forbidden requests of its pages."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

ROOT = Path(__file__).parents[3]
# Pictures of the documents; a run with `--screenshots` writes them anew.
SCREENSHOTS = ROOT / "docs" / "assets" / "console"
_AXE = ROOT / "console" / "node_modules" / "axe-core" / "axe.min.js"
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-features=HttpsUpgrades",
)  # fmt: skip
_ANIMATIONS_END = """
() => Promise.allSettled(
  document.getAnimations()
    .filter((animation) => animation.effect.getComputedTiming().endTime < Infinity)
    .map((animation) => animation.finished)
)
"""
_SERIOUS = ("serious", "critical")
_LANGUAGE_MENUS = {"ja": "言語"}


class ConsoleBrowser:
    """A browser with one page of the console.

    Attributes:
        page: Playwright's page.
        mistakes: errors in the browser's log, and requests to other hosts.
    """

    def __init__(self, page: Page, url: str, folder: Path, *, writes_screenshots: bool) -> None:
        self.page = page
        self.url = url
        self.mistakes: list[str] = []
        self._folder = SCREENSHOTS if writes_screenshots else folder
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.mistakes.append(f"error: {error}"))
        page.on("request", self._note_request)

    def open(self, path: str = "/") -> Self:
        """Open a page by its path below ``/console``."""
        self.page.goto(f"{self.url}/console{path}")
        return self

    def sign_in_with_key(self, api_key: str) -> Self:
        """Sign in with an API key on the sign-in page."""
        self.open()
        self.page.get_by_role("tab", name="API key").click()
        self.page.get_by_placeholder("moyin_").fill(api_key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation").wait_for()
        return self

    def sign_in(self, email: str, password: str) -> Self:
        """Sign in as a user with email and password."""
        self.open()
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").first.fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation").wait_for()
        return self

    def choose_language(self, language: str) -> Self:
        """Switch all pages to ``en`` or ``ja`` by changing the setting in the browser's storage."""
        self.page.evaluate("(name) => localStorage.setItem('moyin.language', name)", language)
        self.page.reload()
        return self

    def wait_until_it_fits(self, width: int, place: str = "", clipped: str = "() => []") -> None:
        """Wait until nothing is wider than the window, and no label is cut off.

        When a window gets narrow, the menu takes a moment to move away. ``clipped`` is a function of
        JavaScript that returns the texts of labels that are cut off.
        """
        deadline = time.monotonic() + 60
        while True:
            needed = self.page.evaluate("document.documentElement.scrollWidth")
            labels = self.page.evaluate(clipped)
            if needed <= width and not labels:
                return
            assert time.monotonic() < deadline, f"{place} needs {needed} pixels, cuts off {labels}"
            self.page.wait_for_timeout(50)

    def check_accessibility(self) -> None:
        """Assert that axe finds no serious problem on the current page."""
        # Colours have no contrast yet while a dialog fades in.
        self.page.evaluate(_ANIMATIONS_END)
        # Evaluated by the browser's debugger, which the page's policy does not bind.
        self.page.evaluate(_AXE.read_text())
        results: dict[str, Any] = self.page.evaluate("async () => await axe.run()")
        serious = [
            (item["id"], [node["html"][:200] for node in item["nodes"]])
            for item in results["violations"]
            if item["impact"] in _SERIOUS
        ]
        assert serious == [], json.dumps(serious, indent=1)

    def screenshot(self, name: str, *, also: str | None = None) -> Path:
        """Save a screenshot of the window for the documentation.

        If ``also`` is a language and the documentation's pictures are written, it gets one, too.
        """
        if also is not None and self._folder == SCREENSHOTS:
            self._switch_language("Language", also)
            self._save_screenshot(SCREENSHOTS / also / f"{name}.png")
            self._switch_language(_LANGUAGE_MENUS[also], "en")
        return self._save_screenshot(self._folder / f"{name}.png")

    def _switch_language(self, menu: str, language: str) -> None:
        """Choose another language by the menu, which keeps what the page shows."""
        self.page.get_by_role("button", name=menu, exact=True).click()
        self.page.locator(f"[role=menuitemradio][lang={language}]").click()
        self.page.locator(f"html[lang={language}]").wait_for()
        self.page.get_by_role("menu").wait_for(state="detached")
        self.page.evaluate("document.activeElement.blur()")
        self.page.evaluate(_ANIMATIONS_END)

    def _save_screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
        return path

    def check_clean(self, *expected: str) -> None:
        """Assert that `mistakes` is empty, except for those that contain an ``expected`` text."""
        left = [text for text in self.mistakes if not any(known in text for known in expected)]
        assert left == []
        self.mistakes.clear()

    def _note_message(self, message: ConsoleMessage) -> None:
        # Who is not signed in yet is asked for nothing else.
        is_question = "/accounts/whoami" in message.location.get("url", "") or (
            "/accounts/session/renew" in message.location.get("url", "")
        )
        if message.type == "error" and not is_question:
            self.mistakes.append(f"log: {message.text} {message.location.get('url')}")

    def _note_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob"):
            return
        if f"{parts.scheme}://{parts.netloc}" != self.url:
            self.mistakes.append(f"request to another host: {request.url}")


@contextmanager
def open_browser(
    url: str,
    folder: Path,
    *,
    width: int = 1280,
    height: int = 800,
    writes_screenshots: bool = False,
    hosts: Sequence[str] = (),
) -> Iterator[ConsoleBrowser]:
    """Start Chromium with an empty profile in ``folder``; ``hosts`` are names of this machine."""
    names = "".join(f"MAP {host} 127.0.0.1, " for host in hosts)
    rules = f"--host-resolver-rules={names}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "browser", executable_path=chromium, args=[*_FLAGS, rules], timeout=120_000,
            viewport={"width": width, "height": height}, locale="en-US", reduced_motion="reduce",
        )  # fmt: skip
        try:
            context.set_default_timeout(60_000)
            yield ConsoleBrowser(
                context.pages[0], url, folder, writes_screenshots=writes_screenshots
            )
        finally:
            context.close()
