"""Defines the prices of models in ``user_config``: by token, by unit or by GPU time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import ROUND_UP, Decimal
from itertools import groupby
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from deployments.replicas import StrictModel
from moyin.domain.money import GpuRate, Price, PriceBand, Rates, Tariff, create_flat_tariff
from moyin.domain.operation import UnitRates

# More than six decimal places would mean fractions of a picodollar per token.
_UsdAmount = Annotated[Decimal, Field(ge=0, decimal_places=6)]


class PriceConfig(StrictModel):
    """The prices of a model in US dollars per million tokens.

    Cached tokens cost the same as other input unless their prices are set.

    Attributes:
        since: first day of the price. From this day on, the prices of earlier days in the list do
            not apply.
        up_to: longest prompt, in tokens, with this price. Of the prices that begin on the same day,
            the last must have none.
    """

    input: _UsdAmount
    output: _UsdAmount
    cache_read: _UsdAmount | None = None
    cache_write: _UsdAmount | None = None
    cache_write_1h: _UsdAmount | None = None
    since: date = date.min
    up_to: int | None = Field(None, ge=1)

    def to_rates(self) -> Rates:
        """Return only the prices, without the day (``since``) and the prompt length (``up_to``)."""
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


class UnitPriceConfig(StrictModel):
    """The prices of a model with ``abilities``, in US dollars; units without a price are free.

    Attributes:
        usd_per_million_characters: price of texts converted to speech.
        usd_per_minute: price of transcribed or translated audio, billed by the second.
        usd_per_image: price of a created picture.
        usd_per_thousand_searches: price of rerankings. A search is a query with up to 100 documents.
        input, output: prices per million tokens, if the back end also bills tokens.
    """

    usd_per_million_characters: _UsdAmount | None = None
    usd_per_minute: _UsdAmount | None = None
    usd_per_image: _UsdAmount | None = None
    usd_per_thousand_searches: _UsdAmount | None = None
    input: _UsdAmount = Decimal(0)
    output: _UsdAmount = Decimal(0)

    @model_validator(mode="after")
    def _require_unit(self) -> UnitPriceConfig:
        if not any(name.startswith("usd_per_") for name in self.model_fields_set):
            raise ValueError("must have the price of at least one unit, such as usd_per_minute")
        return self

    def to_unit_rates(self) -> UnitRates:
        """Return the prices of units; `to_tariff` returns the prices of tokens."""
        return UnitRates(
            characters=self.usd_per_million_characters or Decimal(0),
            minutes=self.usd_per_minute or Decimal(0),
            images=self.usd_per_image or Decimal(0),
            searches=self.usd_per_thousand_searches or Decimal(0),
        )

    def to_tariff(self) -> Tariff:
        return create_flat_tariff(self.input, self.output)


def _expand_zero(value: Any) -> Any:
    """Return prices of 0 in place of the short form ``price: 0``; other values do not change."""
    return {"input": 0, "output": 0} if value == 0 and not isinstance(value, bool) else value


PriceSetting = Annotated[
    PriceConfig
    | GpuPriceConfig
    | UnitPriceConfig
    | Annotated[tuple[PriceConfig, ...], Field(min_length=1)],
    BeforeValidator(_expand_zero),
]


BatchPriceSetting = Annotated[
    PriceConfig | Annotated[tuple[PriceConfig, ...], Field(min_length=1)],
    BeforeValidator(_expand_zero),
]


def halve_tariff(tariff: Tariff) -> Tariff:
    """Return a tariff with half of the prices, rounded up to six decimals."""
    return Tariff(
        prices=tuple(
            Price(
                since=price.since,
                bands=tuple(
                    PriceBand(rates=_halve_rates(band.rates), up_to=band.up_to)
                    for band in price.bands
                ),
            )
            for price in tariff.prices
        )
    )


def _halve_rates(rates: Rates) -> Rates:
    return Rates(
        input=_halve(rates.input),
        output=_halve(rates.output),
        cache_read=_halve(rates.cache_read),
        cache_write=_halve(rates.cache_write),
        cache_write_1h=_halve(rates.cache_write_1h),
    )


def _halve(amount: Decimal) -> Decimal:
    return (amount / 2).quantize(Decimal("0.000001"), ROUND_UP)


def build_tariff(prices: Sequence[PriceConfig]) -> Tariff:
    """Build a tariff from prices that are sorted by day and then by prompt length.

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
