"""Defines prices in ``user_config``: by token, date and prompt length, or by GPU time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from moyin.domain.money import GpuRate, Price, PriceBand, Rates, Tariff, create_flat_tariff

__all__ = ["GpuPriceConfig", "PriceConfig", "PriceSetting", "tariff_of"]

# Six decimal places, because rates are stored in whole picodollars per token.
_Money = Annotated[Decimal, Field(ge=0, decimal_places=6)]


class PriceConfig(BaseModel):
    """Sets prices in US dollars per million tokens; 0 means free.

    Cached tokens cost the same as input unless their prices are set.

    Attributes:
        since: first day of the price. A list with several days describes prices that change.
        up_to: longest prompt, in tokens, that has this price. The last price of a day has no limit.
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
        """Return the rates without their day and limit."""
        tariff = create_flat_tariff(
            self.input,
            self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )
        return tariff.prices[0].bands[0].rates


class GpuPriceConfig(BaseModel):
    """Sets a price per hour of GPU time; a call costs the time that it is measured to take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_gpu_hour: Annotated[Decimal, Field(ge=0)]

    def gpu(self) -> GpuRate:
        return GpuRate(usd_per_hour=self.usd_per_gpu_hour)


def _expand_zero(value: Any) -> Any:
    """Expand the short form ``price: 0``."""
    return {"input": 0, "output": 0} if value == 0 and not isinstance(value, bool) else value


PriceSetting = Annotated[
    PriceConfig | GpuPriceConfig | Annotated[tuple[PriceConfig, ...], Field(min_length=1)],
    BeforeValidator(_expand_zero),
]


def tariff_of(prices: Sequence[PriceConfig]) -> Tariff:
    """Build a tariff from prices that are sorted by day and prompt length.

    Raises:
        ValueError: the prices are not sorted, or some prompt length has no price.
    """
    return Tariff(
        prices=tuple(
            Price(
                since=since, bands=tuple(PriceBand(rates=p.rates(), up_to=p.up_to) for p in bands)
            )
            for since, bands in groupby(prices, key=lambda price: price.since)
        )
    )
