"""Tests that the documents show each page of the console, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_DOCS = _ROOT / "docs"
_PICTURES = _DOCS / "assets" / "console"
_PAGES = re.findall(r'path: "/(\w+)"', (_ROOT / "console/src/pages.ts").read_text())
# The folders of the documents and of their pictures.
_LANGUAGES = ((_DOCS, _PICTURES), (_DOCS / "ja", _PICTURES / "ja"))


def read_pages(folder: Path) -> str:
    return "\n".join(page.read_text() for page in sorted(folder.glob("*.md")))


@pytest.mark.parametrize(("documents", "pictures"), _LANGUAGES)
def test_each_page_of_the_console_is_shown(documents: Path, pictures: Path) -> None:
    pages_text = read_pages(documents)
    missing_pages = [
        page for page in _PAGES
        if not any(
            # A job's picture stands for the list of jobs.
            path.stem == page or path.stem.startswith((f"{page}-", f"{page.removesuffix('s')}-"))
            for path in pictures.glob("*.png") if f"{path.relative_to(_DOCS)})" in pages_text
        )
    ]  # fmt: skip
    assert len(_PAGES) >= 10
    assert missing_pages == []


@pytest.mark.parametrize(("documents", "pictures"), _LANGUAGES)
def test_each_picture_is_used(documents: Path, pictures: Path) -> None:
    pages_text = read_pages(documents)
    unused_pictures = [
        path.name
        for path in pictures.glob("*.png")
        if f"{path.relative_to(_DOCS)})" not in pages_text
    ]
    assert unused_pictures == [], "the browser tests write more pictures than the documents show"
