"""Checks that the content of a page fits the window, in both languages and on two screens."""

from __future__ import annotations

import time

from playwright.sync_api import Page, ViewportSize

LANGUAGES = ("en", "ja")
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
_SECONDS = 60
# What another tab of the same browser causes by its choice: the page keeps all that is open in it.
_CHOOSE_LANGUAGE = """
(name) => {
  if (name === null) localStorage.removeItem("moyin.language");
  else localStorage.setItem("moyin.language", name);
  dispatchEvent(new StorageEvent("storage", {key: "moyin.language"}));
}
"""
# Labels that Mantine cuts off when they are wider than their control, headings of tables, and what
# does not fit into the window or into its dialog.
_FIND_MISFITS = """
() => {
  const shown = (selector) => [...document.querySelectorAll(selector)]
    .filter((element) => element.clientWidth > 0 && element.checkVisibility({visibilityProperty: true}));
  const labels = shown(
    ".mantine-Button-label, .mantine-Tabs-tabLabel, .mantine-SegmentedControl-innerLabel, "
    + ".mantine-NavLink-label, [role=tab], [role=menuitem], th"
  );
  const overlays = shown("[role=dialog], [role=menu], [role=listbox]");
  const outside = ({left, right}) => left < -1 || right > innerWidth + 1;
  return [
    ...labels.filter((label) => label.scrollWidth > label.clientWidth + 1)
      .map((label) => `cut off: ${label.textContent}`),
    ...overlays.filter((overlay) => outside(overlay.getBoundingClientRect()))
      .map((overlay) => `outside: ${overlay.textContent.slice(0, 80)}`),
    ...shown("[role=dialog]").filter((dialog) => dialog.scrollWidth > dialog.clientWidth + 1)
      .map((dialog) => `wider than its dialog: ${dialog.textContent.slice(0, 80)}`),
    ...(document.documentElement.scrollWidth > innerWidth ? ["the page is wider than the window"] : []),
  ];
}
"""


def check_layout(page: Page) -> None:
    """Assert that the page fits in both languages and on both screens; leave it as it was."""
    initial_size = page.viewport_size
    assert initial_size is not None
    stored_language: str | None = page.evaluate("localStorage.getItem('moyin.language')")
    initial_language = page.evaluate("document.documentElement.lang")
    languages = sorted(LANGUAGES, key=lambda language: language != initial_language)
    for screen in sorted((DESKTOP, PHONE), key=lambda screen: screen != initial_size):
        page.set_viewport_size(screen)
        for language in languages:
            choose_language(page, language)
            _wait_until_content_fits(page, f"{page.url} in {language} at {screen['width']} pixels")
        languages.reverse()
    choose_language(page, stored_language)
    page.set_viewport_size(initial_size)


def choose_language(page: Page, language: str | None) -> None:
    """Switch the page to a language, or with None to the browser's; dialogs and menus stay open."""
    page.evaluate(_CHOOSE_LANGUAGE, language)
    page.locator(f"html[lang={language or 'en'}]").wait_for(state="attached")


def find_misfits(page: Page) -> list[str]:
    """Return a description of each element that is cut off or wider than the window."""
    misfits: list[str] = page.evaluate(_FIND_MISFITS)
    return misfits


def _wait_until_content_fits(page: Page, page_description: str) -> None:
    """Wait until the content fits the window, because in a narrow one the menu moves away first."""
    deadline = time.monotonic() + _SECONDS
    while True:
        # Lets the page draw what follows from the size and the language.
        page.wait_for_timeout(20)
        misfits = find_misfits(page)
        if not misfits:
            return
        assert time.monotonic() < deadline, f"{page_description} does not fit: {misfits}"
