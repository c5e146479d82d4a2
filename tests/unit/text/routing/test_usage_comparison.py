from __future__ import annotations

from datetime import date
from decimal import Decimal

from moyin.domain.money import (
    FREE_TARIFF,
    Price,
    PriceBand,
    Rates,
    Tariff,
    create_flat_tariff,
)
from moyin.domain.operation import Operation
from moyin.store.usage_reports import UsageSum
from moyin.text.routing.catalog import TenantPolicy
from moyin.text.routing.usage_comparison import UsageComparison
from tests.unit.text.routing.factories import make_deployment, make_fleet


def make_flat_tariff(usd: int) -> Tariff:
    return create_flat_tariff(Decimal(usd), Decimal(usd))


def make_rates(usd: int) -> Rates:
    price = Decimal(usd)
    return Rates(
        input=price, output=price, cache_read=price, cache_write=price, cache_write_1h=price
    )


# Short prompts are cheap, and prompts of more than 100 tokens are the dearest of all.
BANDED = Tariff(
    prices=(
        Price(
            since=date.min,
            bands=(PriceBand(rates=make_rates(1), up_to=100), PriceBand(rates=make_rates(50))),
        ),
    )
)


def make_usage_sum(
    price_band: int,
    tokens: int,
    *,
    is_complete: bool = True,
    is_embedding: bool = False,
    unit: str | None = None,
    cost_usd: Decimal = Decimal(0),
) -> UsageSum:
    return UsageSum(
        group=("day",),
        band=price_band,
        is_embedding=is_embedding,
        is_complete=is_complete,
        unit=unit,
        calls=1,
        input_tokens=tokens,
        cached_tokens=0,
        output_tokens=0,
        quantity=0 if unit is None else 1,
        load_milliseconds=0,
        cost_usd=cost_usd,
    )


def test_the_dearest_model_depends_on_the_length_of_prompts() -> None:
    fleet = make_fleet(
        [
            make_deployment("free", FREE_TARIFF),
            make_deployment("flat", make_flat_tariff(2)),
            make_deployment("banded", BANDED),
        ]
    )
    usage_comparison = UsageComparison(fleet, "ada")
    assert usage_comparison.price_classes.prompt_bounds == (100,)
    short_sum, long_sum = make_usage_sum(0, 1_000_000), make_usage_sum(1, 1_000_000)
    chosen_models = usage_comparison.choose_models([short_sum])
    assert chosen_models[False].model == "flat-model"
    assert usage_comparison.compute_pico_cost([short_sum], chosen_models) == 2 * 10**12
    chosen_models = usage_comparison.choose_models([short_sum, long_sum])
    assert chosen_models[False].model == "banded-model"
    assert (
        usage_comparison.compute_pico_cost([short_sum, long_sum], chosen_models)
        == (1 + 50) * 10**12
    )


def test_only_complete_calls_are_compared_and_sums_are_not_changed() -> None:
    usage_comparison = UsageComparison(
        make_fleet([make_deployment("flat", make_flat_tariff(2))]), "ada"
    )
    usage_sums = [
        make_usage_sum(0, 10),
        make_usage_sum(0, 5),
        make_usage_sum(0, 70, is_complete=False),
    ]
    assert (
        usage_comparison.compute_pico_cost(usage_sums, usage_comparison.choose_models(usage_sums))
        == 15 * 2 * 10**6
    )
    assert [usage_sum.input_tokens for usage_sum in usage_sums] == [10, 5, 70]


def test_other_operations_count_with_their_own_cost() -> None:
    whisper_deployment = make_deployment(
        "whisper", make_flat_tariff(99), operations=(Operation.TRANSCRIPTION,)
    )
    usage_comparison = UsageComparison(
        make_fleet([make_deployment("flat", make_flat_tariff(2)), whisper_deployment]), "ada"
    )
    speech_sum = make_usage_sum(0, 7, unit="seconds", cost_usd=Decimal("0.5"))
    failed_speech_sum = make_usage_sum(0, 7, unit="seconds", cost_usd=Decimal(9), is_complete=False)
    usage_sums = [make_usage_sum(0, 10), speech_sum, failed_speech_sum]
    chosen_models = usage_comparison.choose_models(usage_sums)
    assert chosen_models[False].model == "flat-model"
    assert (
        usage_comparison.compute_pico_cost(usage_sums, chosen_models) == 10 * 2 * 10**6 + 5 * 10**11
    )


def test_embeddings_are_compared_with_embedding_models() -> None:
    embedding_deployment = make_deployment(
        "vectors", make_flat_tariff(1), abilities=("embeddings",)
    )
    usage_comparison = UsageComparison(
        make_fleet([make_deployment("flat", make_flat_tariff(2)), embedding_deployment]), "ada"
    )
    assert usage_comparison.price_classes.embeddings == {"vectors-model"}
    usage_sums = [make_usage_sum(0, 10, is_embedding=True), make_usage_sum(0, 10)]
    chosen_models = usage_comparison.choose_models(usage_sums)
    assert {is_embedding: model.backend for is_embedding, model in chosen_models.items()} == {
        True: "vectors",
        False: "flat",
    }
    assert (
        usage_comparison.compute_pico_cost(usage_sums, chosen_models) == (10 * 1 + 10 * 2) * 10**6
    )


def test_models_without_key_or_price_and_forbidden_models_are_left_out() -> None:
    fleet = make_fleet(
        [
            make_deployment("free", FREE_TARIFF),
            make_deployment("keyless", make_flat_tariff(90), configured=False),
            make_deployment("cloud", make_flat_tariff(80)),
        ],
        policies={"ada": TenantPolicy(residency=frozenset({"on-premises"}))},
    )
    usage_comparison = UsageComparison(fleet, "ada")
    assert usage_comparison.choose_models([]) == {}
    assert usage_comparison.compute_pico_cost([make_usage_sum(0, 10)], {}) is None
    [model] = UsageComparison(fleet, None).choose_models([]).values()
    assert model.backend == "cloud"


def test_failed_renders_cost_the_same_on_the_dearest_model() -> None:
    usage_comparison = UsageComparison(
        make_fleet([make_deployment("flat", make_flat_tariff(2))]), "ada"
    )
    usage_sums = [
        make_usage_sum(0, 1_000_000),
        make_usage_sum(0, 0, unit="gpu_milliseconds", cost_usd=Decimal(3)),
        make_usage_sum(0, 0, unit="gpu_milliseconds", cost_usd=Decimal(5), is_complete=False),
        make_usage_sum(0, 0, unit="seconds", cost_usd=Decimal(7), is_complete=False),
    ]
    assert (
        usage_comparison.compute_pico_cost(usage_sums, usage_comparison.choose_models(usage_sums))
        == (2 + 3 + 5) * 10**12
    )
