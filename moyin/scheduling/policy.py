"""Which of the waiting renders goes first; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Waiting", "order"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A render that waits for a renderer.

    Attributes:
        id: of its prompt.
        priority: 1 (first) to 5 (last).
        arrived: position in the order of arrival; a retried render keeps its first one.
        owner: whose it is.
    """

    id: str
    priority: int
    arrived: float
    owner: str = ""


def order(window: Iterable[Waiting]) -> list[Waiting]:
    """The window in the order in which it should run: by priority, then by arrival."""
    return sorted(window, key=lambda waiting: (waiting.priority, waiting.arrived, waiting.id))
