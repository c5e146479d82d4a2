"""What may look at a share of the answers: a port, which the judge's sampler implements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moyin.text.routing.answer import Answer
from moyin.text.routing.decision import Candidate
from moyin.text.routing.routed_call import RoutedCall

__all__ = ["Sampler"]


class Sampler(Protocol):
    """Takes samples on the hot path: it may keep them, not work on them."""

    def sample(self, call: RoutedCall, candidates: Sequence[Candidate], answer: Answer) -> Answer:
        """Return the answer for the client, perhaps after a note of it.

        Args:
            candidates: of the decision, in the order in which they would be asked.
        """
