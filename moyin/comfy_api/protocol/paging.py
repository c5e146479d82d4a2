"""Selects pages of ComfyUI's lists, which ComfyUI itself returns whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SUMMARY = ("name", "display_name", "category", "description")


@dataclass(frozen=True, kw_only=True, slots=True)
class PageQuery:
    """Describes the page of a list that a client requests.

    Attributes:
        search: words that must all be found, in any case.
        after: the name after which the page begins.
        limit: the largest number of names on the page; None for all.
    """

    search: str | None = None
    after: str | None = None
    limit: int | None = None

    @property
    def is_partial(self) -> bool:
        """True if the client requests a part of the list."""
        return (self.search, self.after, self.limit) != (None, None, None)


def select_names(names: Iterable[str], query: PageQuery) -> tuple[Sequence[str], int]:
    """Return the names on the page in alphabetical order, and the number of names that match."""
    return _select_page({name: name for name in names}, query)


def select_nodes(nodes: Mapping[str, Any], query: PageQuery) -> tuple[dict[str, Any], int]:
    """Return the nodes on the page by name, and the number of nodes that match.

    A node's name, title, category and description are searched.
    """
    texts = {
        name: " ".join([name, *(str(node.get(member) or "") for member in _SUMMARY)])
        for name, node in nodes.items()
    }
    names, match_count = _select_page(texts, query)
    return {name: nodes[name] for name in names}, match_count


def summarize_nodes(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes without their inputs and outputs, which have thousands of choices."""
    return {
        name: {member: node[member] for member in _SUMMARY if member in node}
        for name, node in nodes.items()
    }


def _select_page(texts: Mapping[str, str], query: PageQuery) -> tuple[Sequence[str], int]:
    """Return the names on the page, and the number of matches.

    Args:
        texts: the searched text by name.
    """
    words = (query.search or "").casefold().split()
    names = [
        name
        for name, text in texts.items()
        if not words or all(word in text.casefold() for word in words)
    ]
    # A page begins at the same place if the name before it is gone.
    later_names = (
        names
        if query.after is None
        else [n for n in names if _get_sort_key(n) > _get_sort_key(query.after)]
    )
    return sorted(later_names, key=_get_sort_key)[: query.limit], len(names)


def _get_sort_key(name: str) -> tuple[str, str]:
    return name.casefold(), name
