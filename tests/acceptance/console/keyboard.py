"""Uses a page of the console with the keyboard alone, and checks where the focus is."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page

# More than any page has.
_MOST_STOPS = 250
# What shows that an element has the focus: an outline, also around the label of a hidden input, or
# the border that Mantine gives to fields.
_DESCRIBE_FOCUS = """
() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  const style = (one) => getComputedStyle(one);
  const near = [element, element.parentElement, element.nextElementSibling, ...(element.labels ?? [])];
  const hasOutline = near.some((one) => one && style(one).outlineStyle !== "none" &&
    parseFloat(style(one).outlineWidth) > 0);
  const border = style(element).getPropertyValue("--input-bd");
  const hasBorder = border !== "" && border === style(element).getPropertyValue("--input-bd-focus");
  const shown = [element, ...(element.labels ?? []), element.parentElement].find((one) =>
    one && one.getBoundingClientRect().width > 1);
  const box = shown.getBoundingClientRect();
  element.dataset.reached = "yes";
  return {
    html: element.outerHTML.slice(0, 200),
    isVisible: hasOutline || hasBorder,
    isInWindow: box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth,
  };
}
"""
# A group of radio buttons has one stop; menus and lists of options are reached by arrows.
_LIST_UNREACHED = """
() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0)
  .filter((one) => one.type !== "radio" || one.checked)
  .filter((one) => one.dataset.reached !== "yes")
  .map((one) => one.outerHTML.slice(0, 200))
"""
_LIST_ODD_ORDER = """
() => [...document.querySelectorAll("[tabindex]")].filter((one) => one.tabIndex > 0)
  .map((one) => one.outerHTML.slice(0, 200))
"""


class Keyboard:
    """Presses keys, and asserts that each focused element is visibly focused."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)

    def type(self, text: str) -> None:
        self._page.keyboard.type(text)

    def move_focus(self, key: str = "Tab") -> bool:
        """Press Tab or another key, and return False if the focus has left the page."""
        self.press(key)
        focus: dict[str, Any] | None = self._page.evaluate(_DESCRIBE_FOCUS)
        if focus is None:
            return False
        assert focus["isVisible"], f"the focus is not visible: {focus['html']}"
        assert focus["isInWindow"], f"the focused element is out of sight: {focus['html']}"
        return True

    def reach(self, target: Locator, key: str = "Tab") -> None:
        """Press Tab or another key until ``target`` has the focus, without leaving the page."""
        target.wait_for()
        for _ in range(_MOST_STOPS):
            if target.evaluate("(element) => element === document.activeElement"):
                return
            assert self.move_focus(key), f"{key} leaves the page before it reaches {target}"
        raise AssertionError(f"{key} does not reach {target}")

    def choose_option(self, name: str) -> None:
        """Choose an option of the focused list with the arrow keys."""
        option = self._page.get_by_role("option", name=name)
        self.press("ArrowDown")
        option.wait_for()
        for _ in range(_MOST_STOPS):
            if option.get_attribute("data-combobox-selected") is not None:
                self.press("Enter")
                return
            self.press("ArrowDown")
        raise AssertionError(f"the arrow keys do not reach the option {name}")

    def choose_item(self, name: str) -> None:
        """Open the menu of the focused button, and choose an item with the arrow keys."""
        self.press("Enter")
        menu = self._page.get_by_role("menu")
        menu_item = menu.locator("[role^=menuitem]").filter(
            has_text=re.compile(f"^{re.escape(name)}$")
        )
        # The first item has the focus.
        menu.locator("[role^=menuitem]:focus").wait_for()
        for _ in range(_MOST_STOPS):
            if menu_item.evaluate("(element) => element === document.activeElement"):
                self.press("Enter")
                return
            self.press("ArrowDown")
        raise AssertionError(f"the arrow keys do not reach the item {name}")

    def check_whole_page(self) -> None:
        """Press Tab through the whole page; assert that all controls get the focus, in order."""
        for _ in range(_MOST_STOPS):
            if not self.move_focus():
                break
        else:
            raise AssertionError("Tab never leaves the page")
        assert self._page.evaluate(_LIST_UNREACHED) == []
        assert self._page.evaluate(_LIST_ODD_ORDER) == []
