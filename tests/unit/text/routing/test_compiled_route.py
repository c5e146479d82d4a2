"""Tests that the reservation of a call covers every possible cost."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.money import Price, PriceBand, Rates, Usage, create_flat_tariff
from moyin.domain.needs import Needs
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS
from moyin.text.routing.compiled_route import compute_max_request_cost
from tests.unit.text.routing.factories import make_deployment, make_fleet, make_route

TOKENS = st.integers(0, 400_000)


@pytest.mark.parametrize("model", sorted(CLAUDE_TARIFFS))
@given(
    prompt_token_counts=st.tuples(TOKENS, TOKENS, TOKENS, TOKENS),
    output_tokens=TOKENS,
    spare_tokens=st.integers(0, 9_999),
)
def test_maximum_cost_covers_every_allowed_usage(
    model: str,
    prompt_token_counts: tuple[int, int, int, int],
    output_tokens: int,
    spare_tokens: int,
) -> None:
    price = CLAUDE_TARIFFS[model].get_price_on(date(2026, 11, 1))
    usage = Usage(
        input_tokens=prompt_token_counts[0],
        cached_tokens=prompt_token_counts[1],
        cache_write_tokens=prompt_token_counts[2],
        cache_write_1h_tokens=prompt_token_counts[3],
        output_tokens=output_tokens,
    )
    assert price.compute_pico_cost(usage) <= price.compute_max_pico_cost(
        usage.prompt_tokens + spare_tokens, output_tokens + spare_tokens
    )


def test_maximum_cost_covers_expensive_short_prompts() -> None:
    def make_rates(amount: int) -> Rates:
        price = Decimal(amount)
        return Rates(
            input=price, output=price, cache_read=price, cache_write=price, cache_write_1h=price
        )

    price = Price(
        since=date.min,
        bands=(PriceBand(up_to=100, rates=make_rates(9)), PriceBand(rates=make_rates(1))),
    )
    short_usage = Usage(input_tokens=100, output_tokens=50)
    assert price.compute_pico_cost(short_usage) <= price.compute_max_pico_cost(200, 50)
    assert price.compute_max_pico_cost(100, 50) == price.compute_pico_cost(short_usage)


def test_attachments_reserve_by_size_and_external_content_a_whole_context() -> None:
    fleet = make_fleet(
        [
            make_deployment(
                "dear", create_flat_tariff(Decimal(1_000_000), Decimal(0)), context=90_000
            )
        ]
    )
    compiled_route = make_route(fleet)

    def compute_reservation(needs: Needs) -> Decimal:
        return compute_max_request_cost(compiled_route, needs, streams=False)

    assert compute_reservation(Needs(prompt_tokens=10, max_tokens=1)) == 1_040
    assert (
        compute_reservation(Needs(prompt_tokens=10, max_tokens=1, attachment_bytes=5_000)) == 6_040
    )
    assert (
        compute_reservation(Needs(prompt_tokens=10, max_tokens=1, attachment_bytes=5_000_000))
        == 90_000
    )
    assert (
        compute_reservation(Needs(prompt_tokens=10, max_tokens=1, has_external_content=True))
        == 90_000
    )
