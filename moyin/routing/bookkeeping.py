"""From usage to money to the ledger."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Protocol

from moyin.domain.money import Usage
from moyin.domain.needs import Model
from moyin.store.usage import UsageEntry

__all__ = ["Ledger", "cost_text", "entry_of", "today"]


class Ledger(Protocol):
    """Takes entries without waiting."""

    def record(self, entry: UsageEntry) -> None: ...


def entry_of(
    *, request_id: str, owner: str, backend: str, model: Model, usage: Usage, complete: bool
) -> UsageEntry:
    """What the ledger keeps of a call, with its exact cost at today's price."""
    return UsageEntry(
        request_id=request_id,
        owner=owner,
        backend=backend,
        model=model.name,
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=model.tariff.on(today()).cost(usage),
        complete=complete,
    )


def today() -> date:
    """The day whose prices hold, in UTC."""
    return datetime.now(UTC).date()


def cost_text(cost: Decimal) -> bytes:
    """US dollars without an exponent, for headers and comments."""
    return format(cost.normalize(), "f").encode()
