"""Defines the router's input (context and budget of a request) and its output (the answer)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from moyin.domain.money import Usage
from moyin.store.usage import UsageEntry

_NO_USAGE = Usage()


class BudgetReservation(Protocol):
    """Interface that charges one request to its caller's budgets; the gatekeeper implements it."""

    @property
    def limits_spending(self) -> bool:
        """True if the caller has a spending limit."""

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        """Reserve the maximum cost of the call and its estimated tokens.

        Raises:
            LimitExceeded: the remaining budget is too small.
            ServiceUnavailable: the budget cannot be read.
        """

    def record(self, usd: Decimal, tokens: int) -> None:
        """Replace the reservation by the actual cost and tokens of the call."""


# Neither this class nor Answer is frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class RoutingContext:
    """Identity, request headers and budget of the caller of one request.

    Attributes:
        owner: the tenant that is charged and whose policy applies.
        headers: the client's request headers in ASGI's format.
        budget: the budget that the call is charged to; None if the call is not charged.
        key_id: id of the caller's API key; empty if unknown.
        for_tenant: the tenant whose share of back-end slots the call uses; empty if that is
            ``owner``. The judge's calls are charged to the operator, but use the share of the
            tenant whose answer is judged.
        is_background: True if interactive calls have priority over this call, such as a line of a
            batch. The router learns nothing from it.
        record_usage: function that stores the ledger entry together with the answer. If None, the
            router itself writes the entry to the ledger.
    """

    request_id: str
    owner: str
    headers: Iterable[tuple[bytes, bytes]]
    budget: BudgetReservation | None = None
    key_id: str = ""
    for_tenant: str = ""
    is_background: bool = False
    record_usage: Callable[[UsageEntry], None] | None = None

    @property
    def tenant(self) -> str:
        """The tenant whose share of a back end's slots the call uses."""
        return self.for_tenant or self.owner


class AnswerStream(Protocol):
    """Asynchronous iterator over the bytes of an answer; its consumer must call `aclose`."""

    @property
    def final_usage(self) -> Usage | None:
        """The usage of the stream after it has ended without an error; None otherwise."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Close the stream, and cancel the request to the back end if it still runs."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """Response of the router: headers with either a complete body or a stream.

    Attributes:
        stream: the body of a streamed answer; None if ``body`` is set.
        data: the parsed JSON of ``body``; None if the router did not parse it.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    stream: AnswerStream | None = None
    usage: Usage = _NO_USAGE
    data: Mapping[str, Any] | None = None

    async def close(self) -> None:
        """Close the stream, if the answer has one."""
        if self.stream is not None:
            await self.stream.aclose()
