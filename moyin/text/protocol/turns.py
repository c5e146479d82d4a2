"""The newest turns of a conversation, from which the router judges a request."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MOST_TURNS", "Turn", "recent"]

# Role and text.
Turn = tuple[str, str]

# Three of the user's, with the answers between them.
MOST_TURNS = 6


def recent(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Return the newest turns, oldest first. Texts are not copied, however long they are.

    Args:
        turns: newest first; empty texts are skipped. Nothing is read beyond what is kept.
    """
    kept: list[Turn] = []
    for turn in turns:
        if turn[1]:
            kept.append(turn)
            if len(kept) == MOST_TURNS:
                break
    kept.reverse()
    return tuple(kept)
