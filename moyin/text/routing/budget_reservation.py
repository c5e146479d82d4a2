"""What a caller with limits pays from: a port, which the gatekeeper's admission implements."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

__all__ = ["BudgetReservation"]


class BudgetReservation(Protocol):
    """One for each request."""

    @property
    def limits_spending(self) -> bool:
        """Whether the price matters."""

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        """Set aside at most ``usd`` and about ``tokens``.

        Raises:
            LimitExceeded: there is not so much left.
            ServiceUnavailable: nobody can tell.
        """

    def record(self, usd: Decimal, tokens: int) -> None:
        """What was bought."""
