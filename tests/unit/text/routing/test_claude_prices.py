from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.money import (
    FREE_TARIFF,
    Price,
    PriceBand,
    Rates,
    Tariff,
    Usage,
    create_flat_tariff,
    format_usd,
    pico_to_usd,
)
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS, PRICES_CHECKED_ON, find_claude_tariff

TOKENS = st.integers(0, 10_000_000)
USAGES = st.builds(
    Usage,
    input_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    cache_write_1h_tokens=TOKENS,
    output_tokens=TOKENS,
)


@given(USAGES)
def test_free_tariff_costs_nothing(usage: Usage) -> None:
    assert pico_to_usd(FREE_TARIFF.get_price_on(PRICES_CHECKED_ON).compute_pico_cost(usage)) == 0


@given(USAGES, st.sampled_from(sorted(CLAUDE_TARIFFS)))
def test_cost_is_the_exact_sum_over_kinds_of_tokens(usage: Usage, model: str) -> None:
    rates = CLAUDE_TARIFFS[model].get_price_on(PRICES_CHECKED_ON).select_rates(usage.prompt_tokens)
    exact_cost = (
        usage.input_tokens * rates.input
        + usage.cached_tokens * rates.cache_read
        + usage.cache_write_tokens * rates.cache_write
        + usage.cache_write_1h_tokens * rates.cache_write_1h
        + usage.output_tokens * rates.output
    )
    price = CLAUDE_TARIFFS[model].get_price_on(PRICES_CHECKED_ON)
    assert pico_to_usd(price.compute_pico_cost(usage)) * 1_000_000 == exact_cost


def test_the_band_is_chosen_by_the_whole_prompt() -> None:
    price = CLAUDE_TARIFFS["claude-haiku-5-5"].get_price_on(PRICES_CHECKED_ON)
    usage = Usage(input_tokens=50_000, cached_tokens=50_000, output_tokens=1_000_000)
    assert pico_to_usd(price.compute_pico_cost(usage)) == Decimal("0.005") + Decimal(
        "0.0005"
    ) + Decimal("0.5")
    longer_usage = Usage(input_tokens=50_000, cached_tokens=50_001, output_tokens=1_000_000)
    assert pico_to_usd(price.compute_pico_cost(longer_usage)) > Decimal("2.5")


@pytest.mark.parametrize(
    ("day", "cache_read"), [(date(2026, 10, 6), "0.20"), (date(2026, 10, 7), "0.10")]
)
def test_prices_change_with_the_day(day: date, cache_read: str) -> None:
    rates = CLAUDE_TARIFFS["claude-sonnet-5-5"].get_price_on(day).select_rates(1)
    assert rates.cache_read == Decimal(cache_read)
    assert (rates.cache_write, rates.cache_write_1h) == (Decimal("2.5"), Decimal("4"))


def test_cached_tokens_cost_as_input_by_default() -> None:
    rates = (
        create_flat_tariff(Decimal(3), Decimal(4), cache_write=Decimal(9))
        .get_price_on(PRICES_CHECKED_ON)
        .select_rates(0)
    )
    assert (rates.cache_read, rates.cache_write, rates.cache_write_1h) == (3, 9, 3)


RATES = Rates(
    input=Decimal(1),
    output=Decimal(1),
    cache_read=Decimal(1),
    cache_write=Decimal(1),
    cache_write_1h=Decimal(1),
)


@pytest.mark.parametrize("limits", [(), (5,), (5, 5, None), (9, 5, None), (None, None)])
def test_bands_must_cover_every_length(
    limits: tuple[int | None, ...],
) -> None:
    with pytest.raises(ValueError):
        Price(since=date.min, bands=tuple(PriceBand(up_to=limit, rates=RATES) for limit in limits))


def test_a_tariff_needs_rising_dates() -> None:
    price = FREE_TARIFF.prices[0]
    with pytest.raises(ValueError):
        Tariff(prices=(price, price))


@pytest.mark.parametrize(
    ("model", "base_model"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-fable-5-2", None),
        ("claude-haiku-4-5-latest", None),
    ],
)
def test_a_snapshot_has_the_price_of_its_model(model: str, base_model: str | None) -> None:
    assert find_claude_tariff(model) is (None if base_model is None else CLAUDE_TARIFFS[base_model])


@given(st.integers(0, 10**18))
def test_money_is_written_out_exactly(pico_usd: int) -> None:
    formatted_usd = format_usd(pico_usd)
    assert "e" not in formatted_usd.lower()
    assert Decimal(formatted_usd) * 10**12 == pico_usd
    assert "." not in formatted_usd or not formatted_usd.endswith("0")


@pytest.mark.parametrize("rate", ["-1", "0.0000001"])
def test_a_rate_that_cannot_be_kept_exactly_is_refused(rate: str) -> None:
    with pytest.raises(ValueError):
        create_flat_tariff(Decimal(rate), Decimal(0))
