"""The page of the documents with screens of commands: written from captures, and compared with them."""

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
    """Return the page with these screens; those that differ in values only stay as they are."""
    present = _read_blocks()
    parts = [_HEAD]
    for command, about in SHOWN.items():
        words, text = _write_command(command), _clean(screens[command])
        if _mask(present.get(words, "")) == _mask(text):
            text = present[words]
        parts.append(f"{about}\n\n```text\n$ moyin {words}\n{text}```\n")
    return "\n".join(parts)


def find_differences(screens: Mapping[str, Screen]) -> list[str]:
    """Return what the page shows differently from these screens, apart from values."""
    present = _read_blocks()
    differences = sorted(set(present) ^ set(map(_write_command, SHOWN)))
    for command in SHOWN:
        shown, text = present.get(_write_command(command), ""), _clean(screens[command])
        if _mask(shown) != _mask(text):
            differences.append(f"{command}:\n{shown}\nis now\n{text}")
    return differences


def _read_blocks() -> dict[str, str]:
    text = PAGE.read_text() if PAGE.is_file() else ""
    return {match[1]: match[2] for match in _BLOCK.finditer(text)}


def _write_command(command: str) -> str:
    """Return the command with words for people instead of placeholders, such as ``SWEEP``."""
    return _PLACEHOLDER.sub(lambda match: _WORDS.get(match[1], match[1].upper()), command)


def _clean(screen: Screen) -> str:
    """Return a screen with the addresses and folders of a reader."""
    lines = (
        _FOLDER.sub("pictures/", _GATEWAY.sub("http://127.0.0.1:8000", line))
        for line in screen.lines
    )
    return "".join(f"{line}\n" for line in lines)


def _mask(text: str) -> str:
    return " ".join(_VALUE.sub("#", text).split())
