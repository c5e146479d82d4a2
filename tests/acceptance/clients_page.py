"""Extracts the snippets of docs/clients.md and other pages, which tests run unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_SNIPPET = re.compile(
    r"^<!-- tested: ([a-z-]+) -->\n\n```([a-z]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_SUFFIXES = {"python": "py", "js": "mjs"}
_CONSTANT = re.compile(r"^const (\w+) =", re.MULTILINE)
# What the snippets in JavaScript assume.
_GIVEN = "const [gateway, key, model] = process.argv.slice(2);\n"


@cache
def list_snippets(page: Path = PAGE) -> Mapping[str, tuple[str, str]]:
    """Return the language and the code of each snippet by its name on the page."""
    snippets = {
        name: (language, code) for name, language, code in _SNIPPET.findall(page.read_text())
    }
    assert len(snippets) == page.read_text().count("<!-- tested: "), (
        f"{page}: a comment `<!-- tested: NAME -->` has no code block below it"
    )
    return snippets


def fill_in_snippet(name: str, *, url: str, model: str) -> str:
    """Return a configuration snippet with a gateway's address and a model filled in."""
    _, snippet = list_snippets()[name]
    return snippet.replace("http://GATEWAY", url).replace("auto", model)


def write_snippets(folder: Path) -> None:
    """Write the program snippets to files ``page_NAME``.

    In JavaScript snippets, constants are exported, so that tests can import them.
    """
    for name, (language, code) in list_snippets().items():
        if (suffix := _SUFFIXES.get(language)) is None:
            continue
        if suffix == "mjs":
            constants = ", ".join(_CONSTANT.findall(code))
            code = f"{_GIVEN}{code}export {{ {constants} }};\n"
        (folder / f"page_{name.replace('-', '_')}.{suffix}").write_text(code)
