"""Builds the usage ledger's entries, and computes the days that determine prices."""

from __future__ import annotations

import time
from datetime import date, timedelta
from typing import Protocol

from moyin.domain.money import Usage, pico_to_usd
from moyin.store.usage import UsageEntry
from moyin.text.routing.answer import RoutingContext

_DAY_SECONDS = 86_400
# The characters of a requested name that the ledger's column can hold.
_MAX_NAME = 256
_EPOCH = date(1970, 1, 1)


class Ledger(Protocol):
    """Usage ledger to which each call adds an entry."""

    def record(self, entry: UsageEntry) -> None:
        """Queue an entry without blocking."""


def build_usage_entry(
    context: RoutingContext,
    requested_model: str,
    backend: str,
    model: str,
    usage: Usage,
    *,
    pico_cost: int,
    error: str | None = None,
) -> UsageEntry:
    """Build the ledger entry of a call that cost ``pico_cost`` picodollars.

    ``error`` is the code of the error that ended the answer early, or `CANCELLED` if the client
    disconnected or another hedged call answered first. It is None for a complete answer.
    """
    return UsageEntry(
        request_id=context.request_id,
        owner=context.owner,
        backend=backend,
        model=model,
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=pico_to_usd(pico_cost),
        complete=error is None,
        key_id=context.key_id or None,
        requested_model=requested_model[:_MAX_NAME],
        error=error,
    )


def current_day() -> int:
    """Return the current UTC day as the number of days since 1970-01-01."""
    return int(time.time()) // _DAY_SECONDS


def date_from_day(day: int) -> date:
    """Return the date that is ``day`` days after 1970-01-01."""
    return _EPOCH + timedelta(days=day)


def today() -> date:
    """Return the current UTC date."""
    return date_from_day(current_day())
