"""Defines token usage and exact prices.

Costs are computed as integers of picodollars (10^-12 US dollars), and returned as decimals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

PICO_PER_USD = 10**12  # picodollars in a US dollar
# Picodollars per token, for each US dollar per million tokens.
_PICO_PER_RATE = 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The tokens of a model call; the four kinds of input do not overlap and add up to the prompt.

    Attributes:
        input_tokens: prompt tokens that were neither read from nor written to a cache.
        cached_tokens: prompt tokens read from the provider's cache.
        cache_write_tokens: prompt tokens written to the 5-minute cache.
        cache_write_1h_tokens: prompt tokens written to the 1-hour cache.
        output_tokens: all generated tokens, including reasoning.
        reasoning_tokens: the part of ``output_tokens`` that is reasoning, if known.
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
    """The prices of tokens in US dollars per million, with at most six decimals."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    # The rates in picodollars per token. Integers are exact and ten times as fast as decimals.
    _pico: tuple[int, int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rates = (self.input, self.cache_read, self.cache_write, self.cache_write_1h, self.output)
        object.__setattr__(self, "_pico", tuple(map(_to_pico_rate, rates)))

    def compute_pico_cost(self, usage: Usage) -> int:
        input_rate, cache_read_rate, cache_write_rate, cache_write_1h_rate, output_rate = self._pico
        return (
            usage.input_tokens * input_rate
            + usage.cached_tokens * cache_read_rate
            + usage.cache_write_tokens * cache_write_rate
            + usage.cache_write_1h_tokens * cache_write_1h_rate
            + usage.output_tokens * output_rate
        )

    def compute_max_pico_cost(self, prompt_tokens: int, output_tokens: int) -> int:
        """Return the highest possible cost in picodollars, whether or not prompt tokens are cached."""
        *prompt_rates, output_rate = self._pico
        return prompt_tokens * max(prompt_rates) + output_tokens * output_rate

    @property
    def is_free(self) -> bool:
        return not any(self._pico)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceBand:
    """The rates of calls whose prompt has at most ``up_to`` tokens; None means any length."""

    rates: Rates
    up_to: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The price of a model from the day ``since`` on, which may depend on the prompt's length.

    Attributes:
        bands: the rates by the length of the prompt, shortest first; the last has no limit.
        is_free: True if all tokens cost nothing.
    """

    since: date
    bands: tuple[PriceBand, ...]
    is_free: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_free", all(band.rates.is_free for band in self.bands))
        limits = [band.up_to for band in self.bands]
        finite_limits = [limit for limit in limits[:-1] if limit is not None]
        if not limits or limits[-1] is not None or len(finite_limits) != len(limits) - 1:
            raise ValueError("the last price band must have no up_to, and all others must have one")
        if finite_limits != sorted(set(finite_limits)):
            raise ValueError(
                f"price bands must be in ascending order of up_to, not {finite_limits}"
            )

    def select_rates(self, prompt_tokens: int) -> Rates:
        *limited_bands, last_band = self.bands
        fitting_bands = (
            b for b in limited_bands if b.up_to is not None and prompt_tokens <= b.up_to
        )
        return next(fitting_bands, last_band).rates

    def compute_pico_cost(self, usage: Usage) -> int:
        """Return the cost of a call in picodollars; the prompt's length decides the price band.

        Cached tokens count as part of the length.
        """
        if len(self.bands) == 1:
            return self.bands[0].rates.compute_pico_cost(usage)
        return self.select_rates(usage.prompt_tokens).compute_pico_cost(usage)

    def compute_max_pico_cost(self, prompt_tokens: int, output_tokens: int) -> int:
        """Return the highest cost in picodollars of a call with at most these numbers of tokens."""
        highest_cost, min_prompt_tokens = 0, 0
        for band in self.bands:
            if min_prompt_tokens > prompt_tokens:
                break
            tokens = prompt_tokens if band.up_to is None else min(prompt_tokens, band.up_to)
            highest_cost = max(
                highest_cost, band.rates.compute_max_pico_cost(tokens, output_tokens)
            )
            min_prompt_tokens = prompt_tokens + 1 if band.up_to is None else band.up_to + 1
        return highest_cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """The prices of a model over time, the oldest first."""

    prices: tuple[Price, ...]

    def __post_init__(self) -> None:
        days = [price.since for price in self.prices]
        if not days or days != sorted(set(days)):
            raise ValueError(
                "a tariff must have a price, and each price a later `since` than the one before"
            )

    def get_price_on(self, day: date) -> Price:
        """Return the price on ``day``; days before the first price have the first price."""
        return next((p for p in reversed(self.prices) if p.since <= day), self.prices[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpeed:
    """The speed in tokens per second at which a model reads a prompt and writes an output."""

    prompt: float
    output: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRate:
    """The cost in US dollars of an hour of a local machine, from which token prices are derived."""

    usd_per_hour: Decimal

    def compute_pico_cost(self, seconds: float, concurrent_calls: int) -> int:
        """Return the cost of ``seconds`` in picodollars, divided among ``concurrent_calls``."""
        usd = self.usd_per_hour / 3600 * Decimal(seconds) / max(concurrent_calls, 1)
        return int(usd * PICO_PER_USD)

    def compute_price(self, speed: TokenSpeed, concurrent_calls: float) -> Price:
        """Return the price of tokens, if ``concurrent_calls`` share the machine."""
        usd_per_second = self.usd_per_hour / 3600 / Decimal(max(concurrent_calls, 1.0))
        prompt_price = _to_usd_per_million(usd_per_second / Decimal(speed.prompt))
        rates = Rates(
            input=prompt_price,
            output=_to_usd_per_million(usd_per_second / Decimal(speed.output)),
            cache_read=prompt_price,
            cache_write=prompt_price,
            cache_write_1h=prompt_price,
        )
        return Price(since=date.min, bands=(PriceBand(rates=rates),))


def pico_to_usd(pico: int) -> Decimal:
    return Decimal(format_usd(pico))


def format_usd(pico: int) -> str:
    """Format picodollars as US dollars, such as ``0.25``, without exponent or trailing zeros."""
    dollars, remainder = divmod(pico, PICO_PER_USD)
    return f"{dollars}.{remainder:012d}".rstrip("0") if remainder else str(dollars)


def _to_pico_rate(rate: Decimal) -> int:
    pico_rate = rate * _PICO_PER_RATE
    if pico_rate < 0 or pico_rate != pico_rate.to_integral_value():
        raise ValueError(f"the price {rate} must be at least 0 and have at most six decimals")
    return int(pico_rate)


def _to_usd_per_million(usd_per_token: Decimal) -> Decimal:
    """Convert a price to US dollars per million tokens, rounded to six decimals."""
    return round(usd_per_token * 1_000_000, 6)


def create_flat_tariff(
    input_price: Decimal,
    output_price: Decimal,
    *,
    cache_read: Decimal | None = None,
    cache_write: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
) -> Tariff:
    """Create a tariff with one price for all days and all lengths of prompts.

    All prices are in US dollars per million tokens. A cache price of None equals the input price.
    """
    rates = Rates(
        input=input_price,
        output=output_price,
        cache_read=input_price if cache_read is None else cache_read,
        cache_write=input_price if cache_write is None else cache_write,
        cache_write_1h=input_price if cache_write_1h is None else cache_write_1h,
    )
    return Tariff(prices=(Price(since=date.min, bands=(PriceBand(rates=rates),)),))


FREE_TARIFF = create_flat_tariff(Decimal(0), Decimal(0))
