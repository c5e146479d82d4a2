"""What a client gets, and who it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moyin.domain.money import Usage
from moyin.text.routing.budget_reservation import BudgetReservation

__all__ = ["Answer", "RoutingContext", "Stream"]

_NOTHING = Usage()


# Not frozen, nor is Answer: one is made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class RoutingContext:
    """Who asks, and in which call. ``headers`` are the client's, as ASGI gives them.

    Attributes:
        budget: what the call is paid from; None: nobody counts.
        key_id: of the caller's key; empty: unknown.
        for_tenant: whose share of a back end's places the call takes; empty: the owner's.
    """

    request_id: str
    owner: str
    headers: Iterable[tuple[bytes, bytes]]
    budget: BudgetReservation | None = None
    key_id: str = ""
    for_tenant: str = ""

    @property
    def tenant(self) -> str:
        """The tenant whose share of a back end's places the call takes."""
        return self.for_tenant or self.owner


class Stream(Protocol):
    """The pieces of an answer as they come; must be closed by whoever takes it."""

    @property
    def final_usage(self) -> Usage | None:
        """What it used, from the moment at which it has ended well."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Cancel upstream where it still generates."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """A whole ``body`` with its ``usage``, or a ``stream``.

    Attributes:
        data: JSON of ``body``, where it was read in any case; None: it was not.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    stream: Stream | None = None
    usage: Usage = _NOTHING
    data: Mapping[str, Any] | None = None
