"""Defines the prices of models in ``user_config``, which are by token or by GPU time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from deployments.replicas import StrictModel
from moyin.domain.money import GpuRate, Price, PriceBand, Rates, Tariff, create_flat_tariff

# More than six decimal places would be fractions of a picodollar per token.
_UsdAmount = Annotated[Decimal, Field(ge=0, decimal_places=6)]


class PriceConfig(StrictModel):
    """The prices of a model in US dollars per million tokens.

    Cached tokens cost the same as other input unless their prices are set.

    Attributes:
        since: first day of the price. In a list, a later day replaces the prices of earlier days.
        up_to: longest prompt, in tokens, with this price. The last price of each day has no limit.
    """

    input: _UsdAmount
    output: _UsdAmount
    cache_read: _UsdAmount | None = None
    cache_write: _UsdAmount | None = None
    cache_write_1h: _UsdAmount | None = None
    since: date = date.min
    up_to: int | None = Field(None, ge=1)

    def to_rates(self) -> Rates:
        """Return the prices without their day and prompt length."""
        tariff = create_flat_tariff(
            self.input,
            self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )
        return tariff.prices[0].bands[0].rates


class GpuPriceConfig(StrictModel):
    """The price of a model per hour of GPU time. Each call costs its measured duration."""

    usd_per_gpu_hour: Annotated[Decimal, Field(ge=0)]

    def to_gpu_rate(self) -> GpuRate:
        return GpuRate(usd_per_hour=self.usd_per_gpu_hour)


def _expand_zero(value: Any) -> Any:
    """Replace the short form ``price: 0`` by prices of 0."""
    return {"input": 0, "output": 0} if value == 0 and not isinstance(value, bool) else value


PriceSetting = Annotated[
    PriceConfig | GpuPriceConfig | Annotated[tuple[PriceConfig, ...], Field(min_length=1)],
    BeforeValidator(_expand_zero),
]


def build_tariff(prices: Sequence[PriceConfig]) -> Tariff:
    """Build a tariff from prices, sorted by day and prompt length.

    Raises:
        ValueError: the prices are not sorted, or there is no price for some prompt length.
    """
    return Tariff(
        prices=tuple(
            Price(
                since=since,
                bands=tuple(PriceBand(rates=p.to_rates(), up_to=p.up_to) for p in bands),
            )
            for since, bands in groupby(prices, key=lambda price: price.since)
        )
    )
