"""Tokens and what they cost, in exact decimals of US dollars."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one call. The four kinds of input are disjoint; their sum is the prompt.

    Attributes:
        input_tokens: prompt tokens that no cache touched.
        cached_tokens: prompt tokens read from the provider's cache.
        cache_write_tokens: prompt tokens written to the 5-minute cache.
        cache_write_1h_tokens: prompt tokens written to the 1-hour cache.
        output_tokens: all generated tokens, reasoning included.
        reasoning_tokens: the part of ``output_tokens`` that is reasoning, where known.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return (
            self.input_tokens
            + self.cached_tokens
            + self.cache_write_tokens
            + self.cache_write_1h_tokens
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal

    def cost(self, usage: Usage) -> Decimal:
        return (
            usage.input_tokens * self.input
            + usage.cached_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_write_1h_tokens * self.cache_write_1h
            + usage.output_tokens * self.output
        ) / MILLION


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Rates for prompts of up to ``up_to`` tokens (None: any length)."""

    rates: Rates
    up_to: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a model costs from ``since`` on, by length of the prompt.

    Attributes:
        bands: rising in ``up_to``; the last one has none.
    """

    since: date
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        limits = [band.up_to for band in self.bands]
        finite = [limit for limit in limits[:-1] if limit is not None]
        if not limits or limits[-1] is not None or len(finite) != len(limits) - 1:
            raise ValueError("the last band, and only the last, must have no upper limit")
        if finite != sorted(set(finite)):
            raise ValueError("bands must rise")

    def rates(self, prompt_tokens: int) -> Rates:
        for band in self.bands:
            if band.up_to is None or prompt_tokens <= band.up_to:
                return band.rates
        raise AssertionError("the last band has no limit")

    def cost(self, usage: Usage) -> Decimal:
        """The exact cost of a call; cache reads and writes count into the prompt's length."""
        return self.rates(usage.prompt_tokens).cost(usage)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """A model's prices over time, oldest first."""

    prices: tuple[Price, ...]

    def __post_init__(self) -> None:
        days = [price.since for price in self.prices]
        if not days or days != sorted(set(days)):
            raise ValueError("a tariff needs prices with rising dates")

    def on(self, day: date) -> Price:
        """The price of ``day``; before the first date, the first price."""
        return next((p for p in reversed(self.prices) if p.since <= day), self.prices[0])


def flat(
    input_price: Decimal,
    output_price: Decimal,
    *,
    cache_read: Decimal | None = None,
    cache_write: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
) -> Tariff:
    """One price for all times and lengths; cached tokens cost as much as others unless given."""
    rates = Rates(
        input=input_price,
        output=output_price,
        cache_read=input_price if cache_read is None else cache_read,
        cache_write=input_price if cache_write is None else cache_write,
        cache_write_1h=input_price if cache_write_1h is None else cache_write_1h,
    )
    return Tariff(prices=(Price(since=date.min, bands=(Band(rates=rates),)),))


FREE = flat(Decimal(0), Decimal(0))
