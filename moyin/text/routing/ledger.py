"""Creates the ledger's entries."""

from __future__ import annotations

import time
from datetime import date, timedelta
from typing import Protocol

from moyin.domain.money import Usage, pico_to_usd
from moyin.store.usage import UsageEntry

__all__ = ["Ledger", "current_day", "date_of", "today", "usage_entry"]

_DAY_SECONDS = 86_400
_EPOCH = date(1970, 1, 1)


class Ledger(Protocol):
    """Takes entries without waiting."""

    def record(self, entry: UsageEntry) -> None: ...


def usage_entry(
    *,
    request_id: str,
    owner: str,
    backend: str,
    model: str,
    usage: Usage,
    pico: int,
    complete: bool,
) -> UsageEntry:
    """Return the ledger entry of a call that cost ``pico`` picodollars."""
    return UsageEntry(
        request_id=request_id,
        owner=owner,
        backend=backend,
        model=model,
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=pico_to_usd(pico),
        complete=complete,
    )


def current_day() -> int:
    """Return the UTC day whose prices apply, counted from 1970-01-01."""
    return int(time.time()) // _DAY_SECONDS


def date_of(day: int) -> date:
    """Return the date of a day counted from 1970-01-01."""
    return _EPOCH + timedelta(days=day)


def today() -> date:
    """Return the current UTC date."""
    return date_of(current_day())
