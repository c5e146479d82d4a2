"""Writes docs/reference/screens.md from captured screens, or compares the page with new screens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.terminal import Screen

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "screens.md"
# The commands that the page shows, and what stands above each.
SHOWN = {
    "route 'Write a sonnet about the sea.'": "Which model would answer, and why:",
    "render {graph} -o {pictures}": "A render. While it runs, the bar shows its progress:",
    "templates show swatch": "What a template needs:",
    "jobs list": "The newest jobs:",
    "jobs show {render}": "One job:",
    "jobs show {failed}": "A job that failed:",
    "jobs show {sweep}": "A batch of renders:",
    "artifacts list": "Files. A wider terminal also shows their job and time:",
    "batches show {batch}": "A batch of text requests:",
    "usage": "Calls, tokens, costs and budgets of the last thirty days:",
    "keys list": "Keys, without their secrets:",
    "members list --organisation {organisation}": "Members of an organisation:",
    "limits list": "Limits and budgets:",
    "audit list --limit 3 --search {organisation}": "Who changed what:",
}
_HEAD = """# Screens of the command line

<!-- Written by MOYIN_SCREENSHOTS=1 pytest tests/integration/gateway/test_command_screens.py -->

What some commands show in a terminal of eighty columns, captured from a farm of the tests. Lists leave out columns
where the terminal is too narrow for them; a pipe gets them all, and `--json` prints everything. All commands are in the
[reference](cli.md), and `moyin COMMAND --help` shows the same.
"""
_BLOCK = re.compile(r"^```text\n\$ moyin (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Values differ between farms: ids, times, sizes, costs, and the bars of charts.
_VALUE = re.compile(r"\S*\d\S*( (s|min|h|d|bytes|[kM]B)(?!\S))?|[▏▎▍▌▋▊▉█]+")
_GATEWAY = re.compile(r"http://127\.0\.0\.1:\d+")
# The folder that the fixture `content` makes.
_FOLDER = re.compile(r"/\S*/content\d+/")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_WORDS = {"graph": "examples/dawn.json", "pictures": "pictures"}


def build_page(screens: Mapping[str, Screen]) -> str:
    """Return the page with these screens; keep screens that differ only in ids, times and the like."""
    existing_screens = _read_blocks()
    page_parts = [_HEAD]
    for command, heading in SHOWN.items():
        shown_command, screen_text = _write_command(command), _replace_addresses(screens[command])
        if _mask_values(existing_screens.get(shown_command, "")) == _mask_values(screen_text):
            screen_text = existing_screens[shown_command]
        page_parts.append(f"{heading}\n\n```text\n$ moyin {shown_command}\n{screen_text}```\n")
    return "\n".join(page_parts)


def find_differences(screens: Mapping[str, Screen]) -> list[str]:
    """Describe where these screens differ from the page; ids, times and the like may differ."""
    existing_screens = _read_blocks()
    differences = sorted(set(existing_screens) ^ set(map(_write_command, SHOWN)))
    for command in SHOWN:
        page_text, screen_text = (
            existing_screens.get(_write_command(command), ""),
            _replace_addresses(screens[command]),
        )
        if _mask_values(page_text) != _mask_values(screen_text):
            differences.append(f"{command}:\n{page_text}\nis now\n{screen_text}")
    return differences


def _read_blocks() -> dict[str, str]:
    page_text = PAGE.read_text() if PAGE.is_file() else ""
    return {match[1]: match[2] for match in _BLOCK.finditer(page_text)}


def _write_command(command: str) -> str:
    """Return the command with readable words, such as ``SWEEP``, instead of placeholders."""
    return _PLACEHOLDER.sub(lambda match: _WORDS.get(match[1], match[1].upper()), command)


def _replace_addresses(screen: Screen) -> str:
    """Return the screen's text, with usual addresses and folders in place of those of the test."""
    lines = (
        _FOLDER.sub("pictures/", _GATEWAY.sub("http://127.0.0.1:8000", line))
        for line in screen.lines
    )
    return "".join(f"{line}\n" for line in lines)


def _mask_values(text: str) -> str:
    return " ".join(_VALUE.sub("#", text).split())
