"""Holds what the router gets with a request and what it returns: context, answer and stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from moyin.domain.money import Usage

__all__ = ["Answer", "BudgetReservation", "RoutingContext", "Stream"]

_NO_USAGE = Usage()


class BudgetReservation(Protocol):
    """Charges one request to its caller's budgets; the gatekeeper's admission implements it."""

    @property
    def limits_spending(self) -> bool:
        """True if the caller has a budget, so that the price of the call matters."""

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        """Set aside at most ``usd`` and about ``tokens``.

        Raises:
            LimitExceeded: the remaining budget is too small.
            ServiceUnavailable: the budget cannot be read.
        """

    def record(self, usd: Decimal, tokens: int) -> None:
        """Record what the call really cost."""


# Neither this class nor Answer is frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class RoutingContext:
    """Describes the caller of one request.

    Attributes:
        headers: the client's, as ASGI gives them.
        budget: charged for the call; None: the call is not counted.
        key_id: of the caller's API key; empty: unknown.
        for_tenant: tenant whose share of a back end's slots the call uses; empty: the owner.
    """

    request_id: str
    owner: str
    headers: Iterable[tuple[bytes, bytes]]
    budget: BudgetReservation | None = None
    key_id: str = ""
    for_tenant: str = ""

    @property
    def tenant(self) -> str:
        """The tenant whose share of a back end's slots the call uses."""
        return self.for_tenant or self.owner


class Stream(Protocol):
    """Yields the pieces of an answer as they arrive; its consumer must close it."""

    @property
    def final_usage(self) -> Usage | None:
        """The usage of a stream that ended well; None until then."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Cancel the upstream request if it is still generating."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """Holds a whole ``body`` with its ``usage``, or a ``stream``.

    Attributes:
        data: parsed JSON of ``body``; None if it was never parsed.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    stream: Stream | None = None
    usage: Usage = _NO_USAGE
    data: Mapping[str, Any] | None = None
