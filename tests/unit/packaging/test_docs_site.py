"""Tests that links and anchors work on GitHub and on the site, and that navigation is complete."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from scripts.docs_site import CONFIG, FOLDERS, PAGES, ROOT, SitePages, find_site_path

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / name for name in PAGES)]
)


@cache
def _list_tokens(page: Path) -> list[Token]:
    flat_tokens: list[Token] = []
    for token in _MARKDOWN.parse(page.read_text()):
        flat_tokens += [token, *(token.children or [])]
    return flat_tokens


@cache
def _list_anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives the page's headings."""
    slug_counts: Counter[str] = Counter()
    anchors = set()
    parsed_tokens = _MARKDOWN.parse(page.read_text())
    for opening_token, inline_token in pairwise(parsed_tokens):
        if opening_token.type != "heading_open":
            continue
        heading = "".join(child.content for child in inline_token.children or [])
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchors.add(f"{slug}-{slug_counts[slug]}" if slug_counts[slug] else slug)
        slug_counts[slug] += 1
    return frozenset(anchors)


def _find_broken_links(page: Path) -> Iterator[str]:
    for token in _list_tokens(page):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not link or re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in _list_anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert list(_find_broken_links(page)) == []


def _list_navigation_paths(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from _list_navigation_paths(value)


def test_navigation_lists_every_page_once() -> None:
    listed_paths = list(_list_navigation_paths(tomllib.loads(CONFIG.read_text())["project"]["nav"]))
    paths = {find_site_path(page) or "" for page in _PAGES} - {""}
    # A folder's own page lists its pages.
    paths_in_folders = {path for path in paths if Path(path).parent.as_posix() in FOLDERS}
    assert sorted(listed_paths) == sorted(
        (paths - paths_in_folders) | {f"{folder}/index.md" for folder in FOLDERS}
    )


@pytest.fixture(scope="module")
def site_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the site's copy of the pages, in which diagrams are empty pictures."""
    folder = tmp_path_factory.mktemp("pages")
    SitePages(folder, _draw_nothing).write()
    return folder


def _draw_nothing(diagram: str, target: Path) -> None:
    target.write_text('<svg viewBox="0 0 100 50"></svg>')


def test_every_link_of_the_sites_copy_leads_somewhere(site_pages: Path) -> None:
    pages = sorted(site_pages.rglob("*.md"))
    assert len(pages) > len(_PAGES)
    broken_links = {
        page.relative_to(site_pages).as_posix(): links
        for page in pages
        if (links := list(_find_broken_links(page)))
    }
    assert broken_links == {}


def test_links_out_of_docs_lead_to_the_sites_pages(site_pages: Path) -> None:
    assert "](architecture/overview.md#security)" in (site_pages / "security.md").read_text()
    assert "](../adr/index.md)" in (site_pages / "architecture/overview.md").read_text()
    assert "](files/examples/templates/sdxl.yaml.md)" in (site_pages / "templates.md").read_text()
    shown_page = (site_pages / "files/examples/templates/sdxl.yaml.md").read_text()
    assert (ROOT / "examples/templates/sdxl.yaml").read_text().strip() in shown_page


def test_diagrams_become_pictures_and_other_code_stays(site_pages: Path) -> None:
    index_page = (site_pages / "index.md").read_text()
    assert "```mermaid" not in index_page
    assert re.search(r"!\[Diagram: Moyin\]\(diagrams/\w+\.svg\)\{ \.diagram", index_page)
    for page in _PAGES:
        path = find_site_path(page)
        if path is not None:
            copied_tokens = _list_tokens(site_pages / path)
            assert [token.content for token in copied_tokens if token.type == "fence"] == [
                token.content
                for token in _list_tokens(page)
                if token.type == "fence" and token.info != "mermaid"
            ], path


def test_a_link_out_of_the_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "docs").mkdir(parents=True)
    (repository / "docs" / "page.md").write_text("[secret](../../secret.txt)")
    (tmp_path / "secret.txt").write_text("hidden")
    monkeypatch.setattr("scripts.docs_site.ROOT", repository)
    with pytest.raises(SystemExit, match="leads out of the repository"):
        SitePages(tmp_path / "pages", _draw_nothing).write()
