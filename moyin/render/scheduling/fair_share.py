"""Whose turn it is: owners share a farm by weight, and the least recently served comes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

__all__ = ["OwnerFairShare"]

_REMEMBERED = 10_000


class OwnerFairShare:
    """Start-time fair queueing: each served render moves its owner back by ``1 / weight``.

    An owner who was away comes back at the present, with neither credit nor debt; so nobody can
    save up turns and then hog the farm.

    Args:
        weights: of owners who are not worth 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        # Least recently served first, so that forgetting the first ones costs nobody a turn.
        self._served: OrderedDict[str, float] = OrderedDict()
        self._present = 0.0

    def of(self, owner: str) -> float:
        """The owner's place: the smallest is served next."""
        return max(self._served.get(owner, self._present), self._present)

    def serve(self, owner: str, others: Iterable[str] = ()) -> None:
        """Take the owner's turn, while ``others`` wait."""
        start = self.of(owner)
        # The present is where the one who waits for longest stands, not where a flood has come to:
        # affinity may serve somebody out of turn, and that must not cost the others theirs.
        self._present = min((self.of(other) for other in others), default=start)
        self._present = min(self._present, start)
        self._served[owner] = start + 1.0 / self._weights.get(owner, 1.0)
        self._served.move_to_end(owner)
        if len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)
