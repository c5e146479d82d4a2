"""Prices in ``user_config``: by token, by date and length of the prompt, or by GPU time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from moyin.domain.money import GpuRate, Price, PriceBand, Rates, Tariff, flat_tariff

__all__ = ["GpuPriceConfig", "PriceConfig", "PriceSetting", "tariff_of"]

# Rates are kept in whole picodollars per token.
_Money = Annotated[Decimal, Field(ge=0, decimal_places=6)]


class PriceConfig(BaseModel):
    """US dollars per million tokens; 0 is a price. Cached tokens cost as input unless given.

    Attributes:
        since: the day from which it holds; in a list, for prices that change.
        up_to: tokens of the longest prompt for which it holds; the last of a day has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: _Money
    output: _Money
    cache_read: _Money | None = None
    cache_write: _Money | None = None
    cache_write_1h: _Money | None = None
    since: date = date.min
    up_to: int | None = Field(None, ge=1)

    def rates(self) -> Rates:
        once = flat_tariff(
            self.input,
            self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )
        return once.prices[0].bands[0].rates


class GpuPriceConfig(BaseModel):
    """What an hour of the machine costs; tokens cost the time that they were measured to take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_gpu_hour: Annotated[Decimal, Field(ge=0)]

    def gpu(self) -> GpuRate:
        return GpuRate(usd_per_hour=self.usd_per_gpu_hour)


def _spelled_out(value: Any) -> Any:
    """``0`` stands for a price of 0."""
    return {"input": 0, "output": 0} if value == 0 and not isinstance(value, bool) else value


PriceSetting = Annotated[
    PriceConfig | GpuPriceConfig | Annotated[tuple[PriceConfig, ...], Field(min_length=1)],
    BeforeValidator(_spelled_out),
]


def tariff_of(prices: Sequence[PriceConfig]) -> Tariff:
    """Prices in the order of their days and lengths.

    Raises:
        ValueError: they do not rise, or leave lengths without a price.
    """
    return Tariff(
        prices=tuple(
            Price(
                since=since, bands=tuple(PriceBand(rates=p.rates(), up_to=p.up_to) for p in bands)
            )
            for since, bands in groupby(prices, key=lambda price: price.since)
        )
    )
