"""Drives the console in Chromium, and records errors and forbidden requests of its pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

from tests.acceptance.console.documented import is_documented
from tests.acceptance.console.layout import check_layout, choose_language

ROOT = Path(__file__).parents[3]
# Pictures of the documents; a run with MOYIN_SCREENSHOTS=1 writes them anew.
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


class ConsoleBrowser:
    """A browser with one page of the console.

    Attributes:
        page: Playwright's page.
        mistakes: errors in the browser's log, and requests to other hosts or to routes that no
            OpenAPI document of the stack has.
    """

    def __init__(
        self, page: Page, url: str, screenshot_folder: Path, *, writes_screenshots: bool
    ) -> None:
        self.page = page
        self.url = url
        self.mistakes: list[str] = []
        self._screenshot_folder = screenshot_folder
        self._writes_screenshots = writes_screenshots
        page.on("console", self._record_log_error)
        page.on("pageerror", lambda error: self.mistakes.append(f"error: {error}"))
        page.on("request", self._check_request)

    def open(self, path: str = "/") -> Self:
        """Open a page by its path below ``/console``."""
        self.page.goto(f"{self.url}/console{path}")
        return self

    def sign_in_with_key(self, api_key: str) -> Self:
        """Sign in with an API key on the sign-in page."""
        self.open()
        self.page.get_by_role("tab", name="API key").click()
        self.page.get_by_placeholder("moyin_").fill(api_key)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.get_by_role("navigation").wait_for()
        return self

    def sign_in(self, email: str, password: str) -> Self:
        """Sign in as a user with email and password."""
        self.open()
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").first.fill(password)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.get_by_role("navigation").wait_for()
        return self

    def choose_language(self, language: str) -> Self:
        """Switch all pages to ``en`` or ``ja`` by changing the setting in the browser's storage."""
        self.page.evaluate("(name) => localStorage.setItem('moyin.language', name)", language)
        self.page.reload()
        return self

    def check_accessibility(self) -> None:
        """Assert that axe finds no serious problem in the page, and that its content fits the window.

        The layout is checked in both languages, at the widths of a desktop and of a phone; the page
        keeps its state, such as open dialogs.
        """
        # Colours have no contrast yet while a dialog fades in, and less in a table that is read anew.
        self.page.locator("table[aria-busy=true]").first.wait_for(state="detached")
        self.page.evaluate(_ANIMATIONS_END)
        # Evaluated by the browser's debugger, which the page's policy does not bind.
        self.page.evaluate(_AXE.read_text())
        axe_results: dict[str, Any] = self.page.evaluate("async () => await axe.run()")
        serious_violations = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]])
            for violation in axe_results["violations"]
            if violation["impact"] in _SERIOUS
        ]
        assert serious_violations == [], json.dumps(serious_violations, indent=1)
        check_layout(self.page)

    def screenshot(self, name: str, *, also_in: str | None = None) -> Path:
        """Save a screenshot of the window in the test's folder.

        Args:
            also_in: a language. If the documentation's pictures are being written, the screenshot
                becomes one of them, in English and in this language.
        """
        if also_in is None or not self._writes_screenshots:
            return self._save_screenshot(self._screenshot_folder / f"{name}.png")
        choose_language(self.page, also_in)
        self._save_screenshot(SCREENSHOTS / also_in / f"{name}.png")
        choose_language(self.page, "en")
        return self._save_screenshot(SCREENSHOTS / f"{name}.png")

    def _save_screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.evaluate(_ANIMATIONS_END)
        self.page.screenshot(path=path)
        return path

    def check_clean(self, *expected_texts: str) -> None:
        """Assert that each of the `mistakes` contains one of ``expected_texts``, and remove them all."""
        unexpected_mistakes = [
            mistake
            for mistake in self.mistakes
            if not any(expected_text in mistake for expected_text in expected_texts)
        ]
        assert unexpected_mistakes == [], unexpected_mistakes
        self.mistakes.clear()

    def _record_log_error(self, message: ConsoleMessage) -> None:
        # Who is not signed in yet is asked for nothing else.
        is_sign_in_check = "/accounts/whoami" in message.location.get("url", "") or (
            "/accounts/session/renew" in message.location.get("url", "")
        )
        if message.type == "error" and not is_sign_in_check:
            self.mistakes.append(f"log: {message.text} {message.location.get('url')}")

    def _check_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("data", "blob"):
            return
        if f"{url.scheme}://{url.netloc}" != self.url:
            self.mistakes.append(f"request to another host: {request.url}")
        elif not is_documented(f"http://127.0.0.1:{url.port}", request.method, url.path):
            self.mistakes.append(f"request to an undocumented route: {request.method} {url.path}")


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
    """Start Chromium with an empty profile in ``folder``, and open a page.

    Args:
        width, height: size of the window in pixels.
        hosts: host names that lead to this machine; the browser finds no other host by name.
    """
    host_rules = "".join(f"MAP {host} 127.0.0.1, " for host in hosts)
    resolver_flag = f"--host-resolver-rules={host_rules}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "browser", executable_path=chromium, args=[*_FLAGS, resolver_flag], timeout=120_000,
            viewport={"width": width, "height": height}, locale="en-US", reduced_motion="reduce",
        )  # fmt: skip
        try:
            context.set_default_timeout(60_000)
            yield ConsoleBrowser(
                context.pages[0], url, folder, writes_screenshots=writes_screenshots
            )
        finally:
            context.close()
