"""Lists the prices of the Claude models, in US dollars per million tokens.

Source: https://platform.claude.com/docs/en/about-claude/pricing, as of 2026-10-24. The operator's
``user_config`` can override each price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal

from moyin.domain.money import Price, PriceBand, Rates, Tariff

PRICES_CHECKED_ON = date(2026, 10, 24)
_SINCE_RELEASE = date.min


def _build_rates(base: str, output: str, cache_read: str) -> Rates:
    """Return the rates of a model, all in US dollars per million tokens.

    Writing to the cache costs 1.25 times the input rate if the entry is kept for five minutes, and
    twice the input rate if it is kept for an hour.

    Args:
        base: the input rate.
        output: the output rate.
        cache_read: the rate for input tokens that are read from the cache.
    """
    price = Decimal(base)
    return Rates(
        input=price,
        output=Decimal(output),
        cache_read=Decimal(cache_read),
        cache_write=price * Decimal("1.25"),
        cache_write_1h=price * 2,
    )


def _build_price(base: str, output: str, cache_read: str, *, since: date = _SINCE_RELEASE) -> Price:
    return Price(since=since, bands=(PriceBand(rates=_build_rates(base, output, cache_read)),))


_HAIKU_5_5 = Price(
    since=_SINCE_RELEASE,
    bands=(
        PriceBand(up_to=100_000, rates=_build_rates("0.10", "0.50", "0.01")),
        PriceBand(rates=_build_rates("0.50", "2.50", "0.05")),
    ),
)

_SONNET_5_5 = (
    _build_price("2", "10", "0.20"),
    _build_price("2", "10", "0.10", since=date(2026, 10, 7)),
)

CLAUDE_TARIFFS: Mapping[str, Tariff] = {
    "claude-fable-5-1": Tariff(prices=(_build_price("10", "50", "0.25"),)),
    "claude-mythos-5-1": Tariff(prices=(_build_price("10", "50", "0.25"),)),
    "claude-fable-5": Tariff(prices=(_build_price("10", "50", "1"),)),
    "claude-mythos-5": Tariff(prices=(_build_price("10", "50", "1"),)),
    "claude-opus-5-5": Tariff(prices=(_build_price("4", "20", "0.20"),)),
    **{
        f"claude-opus-{version}": Tariff(prices=(_build_price("5", "25", "0.50"),))
        for version in ("5", "4-8", "4-7", "4-6", "4-5")
    },
    "claude-sonnet-5-5": Tariff(prices=_SONNET_5_5),
    "claude-sonnet-5": Tariff(prices=(_build_price("2", "10", "0.20"),)),
    **{
        f"claude-sonnet-{version}": Tariff(prices=(_build_price("3", "15", "0.30"),))
        for version in ("4-6", "4-5")
    },
    "claude-haiku-5-5": Tariff(prices=(_HAIKU_5_5,)),
    "claude-haiku-4-5": Tariff(prices=(_build_price("1", "5", "0.10"),)),
}

_SNAPSHOT_SUFFIX = re.compile(r"-20\d{6}$")


def find_claude_tariff(model: str) -> Tariff | None:
    """Return the tariff of a model, or None if it is not in `CLAUDE_TARIFFS`.

    A dated snapshot such as ``claude-haiku-4-5-20251001`` has the tariff of its model.
    """
    return CLAUDE_TARIFFS.get(_SNAPSHOT_SUFFIX.sub("", model))
