"""Builds the documentation site in its own environment, and reads it in a real browser."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page, expect, sync_playwright

_ROOT = Path(__file__).parents[2]
_PYTHON = _ROOT / ".venv-docs" / "bin" / "python"
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_COUNTED = {"li", "tr", "pre", "h2", "h3", "em", "strong"}
_DESKTOP = {"width": 1280, "height": 900}
_PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the built documentation (``site``) and its Markdown pages (``work/pages``)."""
    assert _PYTHON.exists(), "the site's generator is missing: run `make site-environment`"
    folder = tmp_path_factory.mktemp("docs")
    command = [str(_PYTHON), "scripts/docs_site.py"]
    command += ["--work", str(folder / "work"), "--output", str(folder / "site")]
    process = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


@pytest.fixture(scope="module")
def address(site_folder: Path) -> Iterator[str]:
    handler = functools.partial(_SilentHandler, directory=str(site_folder / "site"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield browser
        browser.close()


class _TagCounter(HTMLParser):
    """Counts the tags of a page's article, and collects the addresses that the page loads.

    Args:
        whole_page: True to count the tags of the whole page.
    """

    def __init__(self, html: str, *, whole_page: bool = False) -> None:
        super().__init__()
        self._inside = whole_page
        self.counts: Counter[str] = Counter()
        self.loaded: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag != "a":
            self.loaded |= {
                attributes.get(name) or "" for name in ("src", "href", "srcset", "data")
            }
        self._inside = self._inside or tag == "article"
        if self._inside and tag in _COUNTED:
            self.counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "article"


def test_pages_have_the_structure_that_github_shows(site_folder: Path) -> None:
    sources = site_folder / "work" / "pages"
    pages = sorted(sources.rglob("*.md"))
    assert len(pages) > 40
    for page in pages:
        if page.is_relative_to(sources / "files"):
            continue
        name = page.relative_to(sources)
        expected_counts = _TagCounter(_MARKDOWN.render(page.read_text()), whole_page=True).counts
        html = (site_folder / "site" / name.with_suffix(".html")).read_text()
        assert _TagCounter(html).counts == expected_counts, name


def test_no_page_loads_a_file_from_another_host(site_folder: Path) -> None:
    pages = list((site_folder / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded_urls = _TagCounter(page.read_text()).loaded
        assert [url for url in loaded_urls if re.match(r"([a-z]+:)?//", url)] == [], page
    for style_sheet in (site_folder / "site").rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style_sheet.read_text()), (
            style_sheet
        )


def test_japanese_pages_name_their_language(site_folder: Path) -> None:
    for name in ("index", "quickstart"):
        assert '<article lang="ja"' in (site_folder / "site" / "ja" / f"{name}.html").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [_DESKTOP, _PHONE], ids=["desktop", "phone"])
def test_pages_fit_and_send_no_request_to_another_host(
    browser: Browser, address: str, size: dict[str, int], scheme: str
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    requests: list[str] = []
    console_errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on(
        "console",
        lambda entry: console_errors.append(entry.text) if entry.type == "error" else None,
    )
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    for name in ("index", "reference/matrix", "architecture/life-of-a-render", "ja/index"):
        page.goto(f"{address}{name}.html")
        expect(page.locator("h1")).to_be_visible()
        content_width = page.evaluate("document.documentElement.scrollWidth")
        assert content_width <= size["width"], name
        assert (
            _measure_brightness(page) > 200 if scheme == "light" else _measure_brightness(page) < 60
        )
    context.close()
    assert console_errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def _measure_brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_diagrams_are_drawn(browser: Browser, address: str) -> None:
    page = browser.new_page()
    for name in ("index", "security", "architecture/life-of-a-chat"):
        page.goto(f"{address}{name}.html")
        diagram = page.locator("img.diagram")
        expect(diagram).to_be_visible()
        assert diagram.evaluate("image => image.naturalWidth") > 100, name
    page.close()


def test_search_finds_words_of_a_page(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}index.html", wait_until="networkidle")
    page.get_by_role("button", name="Search").first.click()
    page.get_by_role("combobox", name="Search").fill("bubblewrap")
    expect(page.get_by_role("option").first).to_contain_text(
        "bubblewrap", ignore_case=True, timeout=60_000
    )
    page.close()
