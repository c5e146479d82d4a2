"""Holds token usage and exact prices: picodollars inside, decimal US dollars outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

# Picodollars per dollar. A token at one dollar per million costs a million picodollars.
PICO = 10**12
_PICO_PER_RATE = 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The tokens of a call. The four kinds of input are disjoint; their sum is the prompt.

    Attributes:
        input_tokens: prompt tokens that were neither read from nor written to a cache.
        cached_tokens: prompt tokens read from the provider's cache.
        cache_write_tokens: prompt tokens written to the 5-minute cache.
        cache_write_1h_tokens: prompt tokens written to the 1-hour cache.
        output_tokens: all generated tokens, including reasoning.
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
    """Prices in US dollars per million tokens, with six decimals at most.

    Raises:
        ValueError: a rate has more decimals, or is negative.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    # The rates in picodollars per token. Integers are exact and ten times as fast as decimals.
    _pico: tuple[int, int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rates = (self.input, self.cache_read, self.cache_write, self.cache_write_1h, self.output)
        object.__setattr__(self, "_pico", tuple(map(_pico, rates)))

    def pico_cost(self, usage: Usage) -> int:
        """Return the cost of ``usage`` in picodollars."""
        read, cached, written, written_1h, out = self._pico
        return (
            usage.input_tokens * read
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.cache_write_1h_tokens * written_1h
            + usage.output_tokens * out
        )

    def max_pico_cost(self, prompt_tokens: int, output_tokens: int) -> int:
        """Return the highest cost of these tokens in picodollars, for any use of a cache."""
        *prompt_rates, out = self._pico
        return prompt_tokens * max(prompt_rates) + output_tokens * out

    @property
    def is_free(self) -> bool:
        return not any(self._pico)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceBand:
    """The rates for prompts of up to ``up_to`` tokens (None: any length)."""

    rates: Rates
    up_to: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The price of a model from ``since`` on, by the length of the prompt.

    Attributes:
        bands: ascending by ``up_to``; the last band has no limit.
        is_free: True if no token costs anything.
    """

    since: date
    bands: tuple[PriceBand, ...]
    is_free: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_free", all(band.rates.is_free for band in self.bands))
        limits = [band.up_to for band in self.bands]
        finite = [limit for limit in limits[:-1] if limit is not None]
        if not limits or limits[-1] is not None or len(finite) != len(limits) - 1:
            raise ValueError("the last price band, and only the last, must have no up_to")
        if finite != sorted(set(finite)):
            raise ValueError("price bands must be in ascending order of up_to")

    def rates(self, prompt_tokens: int) -> Rates:
        for band in self.bands:
            if band.up_to is None or prompt_tokens <= band.up_to:
                return band.rates
        raise AssertionError("the last band has no limit")

    def pico_cost(self, usage: Usage) -> int:
        """Return the exact cost of a call in picodollars.

        Cache reads and writes count towards the length of the prompt.
        """
        if len(self.bands) == 1:
            return self.bands[0].rates.pico_cost(usage)
        return self.rates(usage.prompt_tokens).pico_cost(usage)

    def max_pico_cost(self, prompt_tokens: int, output_tokens: int) -> int:
        """Return the highest cost in picodollars of a prompt of up to ``prompt_tokens``.

        A longer prompt may be cheaper, because it has another band.
        """
        highest, reached = 0, 0
        for band in self.bands:
            if reached > prompt_tokens:
                break
            tokens = prompt_tokens if band.up_to is None else min(prompt_tokens, band.up_to)
            highest = max(highest, band.rates.max_pico_cost(tokens, output_tokens))
            reached = prompt_tokens + 1 if band.up_to is None else band.up_to + 1
        return highest

    def cost(self, usage: Usage) -> Decimal:
        """Return the cost of a call in US dollars."""
        return usd(self.pico_cost(usage))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """The prices of a model over time, oldest first."""

    prices: tuple[Price, ...]

    def __post_init__(self) -> None:
        days = [price.since for price in self.prices]
        if not days or days != sorted(set(days)):
            raise ValueError("a tariff needs at least one price, in ascending order of dates")

    def price_on(self, day: date) -> Price:
        """Return the price of ``day``; before the first date, the first price."""
        return next((p for p in reversed(self.prices) if p.since <= day), self.prices[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpeed:
    """The speed of a request in tokens per second, for its prompt and for its output."""

    prompt: float
    output: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRate:
    """The hourly cost of a local machine, from which the price of its tokens is derived."""

    usd_per_hour: Decimal

    def price(self, speed: TokenSpeed, sharing: float) -> Price:
        """Return the price of tokens at ``speed``.

        Args:
            sharing: the number of requests that share the machine, including this one; at least 1.
        """
        usd_per_second = self.usd_per_hour / 3600 / Decimal(max(sharing, 1.0))
        read = _rate(usd_per_second / Decimal(speed.prompt))
        rates = Rates(
            input=read,
            output=_rate(usd_per_second / Decimal(speed.output)),
            cache_read=read,
            cache_write=read,
            cache_write_1h=read,
        )
        return Price(since=date.min, bands=(PriceBand(rates=rates),))


def usd(pico: int) -> Decimal:
    """Convert picodollars to US dollars."""
    return Decimal(usd_text(pico))


def usd_text(pico: int) -> str:
    """Format picodollars as US dollars, without an exponent and without trailing zeros."""
    whole, rest = divmod(pico, PICO)
    return f"{whole}.{rest:012d}".rstrip("0") if rest else str(whole)


def _pico(rate: Decimal) -> int:
    scaled = rate * _PICO_PER_RATE
    if scaled < 0 or scaled != scaled.to_integral_value():
        raise ValueError(f"the rate {rate} must be at least 0 and have at most six decimals")
    return int(scaled)


def _rate(usd_per_token: Decimal) -> Decimal:
    """Convert to US dollars per million tokens, rounded to the six decimals of `Rates`."""
    return round(usd_per_token * 1_000_000, 6)


def flat_tariff(
    input_price: Decimal,
    output_price: Decimal,
    *,
    cache_read: Decimal | None = None,
    cache_write: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
) -> Tariff:
    """Create a tariff with one price. Cached tokens cost as much as others unless given."""
    rates = Rates(
        input=input_price,
        output=output_price,
        cache_read=input_price if cache_read is None else cache_read,
        cache_write=input_price if cache_write is None else cache_write,
        cache_write_1h=input_price if cache_write_1h is None else cache_write_1h,
    )
    return Tariff(prices=(Price(since=date.min, bands=(PriceBand(rates=rates),)),))


FREE_TARIFF = flat_tariff(Decimal(0), Decimal(0))
