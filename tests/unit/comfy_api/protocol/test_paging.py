"""Tests how pages of nodes and files are selected."""

from __future__ import annotations

import pytest

from moyin.comfy_api.protocol.paging import (
    PageQuery,
    select_names,
    select_nodes,
    summarize_nodes,
)

FILES = ["b.gguf", "A.ckpt", "sub/c.ckpt", "a.ckpt"]
NODES = {
    "KSampler": {"display_name": "KSampler", "category": "sampling", "input": {"required": {}}},
    "SaveImage": {"display_name": "Save Image", "category": "image", "description": "To a FILE"},
    "Old": {"category": None},
}


@pytest.mark.parametrize(
    ("query", "names", "count"),
    [
        (PageQuery(limit=2), ["A.ckpt", "a.ckpt"], 4),
        (PageQuery(limit=2, after="a.ckpt"), ["b.gguf", "sub/c.ckpt"], 4),
        # The cursor names a file that has been deleted since.
        (PageQuery(after="aa.ckpt"), ["b.gguf", "sub/c.ckpt"], 4),
        (PageQuery(search="CKPT"), ["A.ckpt", "a.ckpt", "sub/c.ckpt"], 3),
        (PageQuery(search=" ckpt  sub "), ["sub/c.ckpt"], 1),
        (PageQuery(search="none"), [], 0),
        (PageQuery(search=""), ["A.ckpt", "a.ckpt", "b.gguf", "sub/c.ckpt"], 4),
    ],
)
def test_a_page_follows_its_cursor_and_matches_the_search(
    query: PageQuery, names: list[str], count: int
) -> None:
    assert select_names(FILES, query) == (names, count)


def test_all_pages_have_every_name_once() -> None:
    names: list[str] = []
    while page := select_names(FILES, PageQuery(after=names[-1] if names else None, limit=1))[0]:
        names += page
    assert sorted(names) == sorted(FILES)


def test_nodes_are_found_by_their_texts() -> None:
    for search, found_names in (
        ("file save", ["SaveImage"]),
        ("sampl", ["KSampler"]),
        ("old", ["Old"]),
    ):
        nodes, count = select_nodes(NODES, PageQuery(search=search))
        assert (list(nodes), count) == (found_names, 1), search
    assert select_nodes(NODES, PageQuery(limit=1)) == ({"KSampler": NODES["KSampler"]}, 3)


def test_a_summary_has_no_inputs() -> None:
    assert summarize_nodes(NODES) == {
        "KSampler": {"display_name": "KSampler", "category": "sampling"},
        "SaveImage": NODES["SaveImage"],
        "Old": NODES["Old"],
    }
