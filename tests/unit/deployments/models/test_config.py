from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.models.config import ModelsConfig
from moyin.domain.money import FREE_TARIFF, GpuRate, Usage
from moyin.domain.operation import Operation, Unit
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS, PRICES_CHECKED_ON

SMALL = {"name": "small", "context": 2048}
HAIKU = {"name": "claude-haiku-5-5", "context": 1_000_000}
LOCAL = {"name": "local", "type": "llamacpp", "models": [SMALL]}
CLOUD = {"name": "claude", "type": "anthropic", "models": [HAIKU]}
VLLM = {"name": "vllm", "type": "openai", "base_url": "http://h:1/v1/"}
PAID = {**SMALL, "price": {"input": 0.1, "output": 0}}


def make_config(*backends: dict[str, Any], **aliases: Any) -> ModelsConfig:
    return ModelsConfig.model_validate({"backends": backends, "aliases": aliases})


def test_price_comes_from_the_configuration_the_table_or_the_type_of_back_end() -> None:
    models_config = make_config(
        LOCAL, CLOUD, {**VLLM, "models": [{**PAID, "name": "paid"}]}, fast=["small"]
    )
    local, cloud, vllm = models_config.backends
    assert (
        local.find_tariff(local.models[0]).get_price_on(PRICES_CHECKED_ON).select_rates(0).output
        == 0
    )
    assert cloud.find_tariff(cloud.models[0]) is CLAUDE_TARIFFS["claude-haiku-5-5"]
    assert vllm.find_tariff(vllm.models[0]).get_price_on(PRICES_CHECKED_ON).select_rates(
        0
    ).input == Decimal("0.1")
    assert models_config.aliases["fast"].models == ("small",)


def test_price_is_found_by_the_upstream_name() -> None:
    renamed_model = {**HAIKU, "name": "cheap", "upstream": "claude-haiku-5-5"}
    (cloud,) = make_config({**CLOUD, "models": [renamed_model]}).backends
    assert cloud.find_tariff(cloud.models[0]) is CLAUDE_TARIFFS["claude-haiku-5-5"]


@pytest.mark.parametrize(
    ("backends", "aliases", "message"),
    [
        ([{**VLLM, "models": [SMALL]}], {}, "price of 'small' is unknown"),
        ([{**CLOUD, "models": [{**HAIKU, "name": "claude-next"}]}], {}, "price of 'claude-next'"),
        ([LOCAL, LOCAL], {}, "same name"),
        (
            [{**LOCAL, "server": {"replicas": 2}}, {**LOCAL, "name": "local-1"}],
            {},
            "same name",
        ),
        ([LOCAL], {"fast": ["big"]}, "no back end has a model 'big'"),
        ([LOCAL], {"small": ["small"]}, "is the name of a model"),
        (
            [{**LOCAL, "models": [{**SMALL, "name": "auto"}]}],
            {},
            "reserved for the router's choice",
        ),
        ([{**LOCAL, "models": []}], {}, "at least 1"),
        ([{**LOCAL, "models": [SMALL, {**SMALL, "name": "x"}]}], {}, "at most 1"),
        ([{**LOCAL, "model": []}], {}, "Extra inputs"),
        ([{**LOCAL, "server": {"gpu": 1}}], {}, "Extra inputs"),
        ([{**VLLM, "base_url": "h:1", "models": [PAID]}], {}, "must be an http"),
        ([{**LOCAL, "type": "gpt"}], {}, "does not match any of the expected tags"),
        (
            [{**VLLM, "models": [{**SMALL, "price": {"input": -1, "output": 0}}]}],
            {},
            "greater than",
        ),
        (
            [{**VLLM, "models": [{**SMALL, "price": {"input": "0.0000001", "output": 0}}]}],
            {},
            "6 decimal places",
        ),
        (
            [{**VLLM, "models": [{**SMALL, "price": [{"input": 1, "output": 1, "up_to": 9}]}]}],
            {},
            "must have no up_to",
        ),
        (
            [LOCAL],
            {"home": {"residency": ["mars"]}},
            "aliases.home.residency: no back end has the residency 'mars'",
        ),
        ([LOCAL], {"fast": {"cache": {"ttl_s": 0}}}, "greater than"),
        ([{**LOCAL, "batch": True}], {}, "Extra inputs"),
        (
            [{**VLLM, "models": [{**PAID, "batch_price": {"input": 1, "output": 1}}]}],
            {},
            "the 'batch_price' of 'small' requires 'batch: true'",
        ),
        (
            [{**VLLM, "batch": True, "models": [{**SMALL, "price": {"usd_per_gpu_hour": 1}}]}],
            {},
            "set the 'batch_price' of 'small'",
        ),
    ],
)
def test_mistake_in_back_ends_or_aliases_is_reported(
    backends: list[Any], aliases: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(*backends, **aliases)


def test_prices_may_depend_on_day_and_prompt_length() -> None:
    prices = [
        {"input": 1, "output": 5, "up_to": 1000},
        {"input": 2, "output": 10},
        {"since": "2027-01-01", "input": 3, "output": 15},
    ]
    (vllm,) = make_config({**VLLM, "models": [{**SMALL, "price": prices}]}).backends
    tariff = vllm.find_tariff(vllm.models[0])
    assert tariff.get_price_on(PRICES_CHECKED_ON).select_rates(1000).input == 1
    assert tariff.get_price_on(PRICES_CHECKED_ON).select_rates(1001).input == 2
    assert tariff.get_price_on(date(2027, 1, 1)).select_rates(1).output == 15


def test_batches_cost_half_unless_they_have_prices() -> None:
    prices = [{"input": 1, "output": "0.000005", "up_to": 1000}, {"input": 2, "output": 10}]
    priced_model = {**PAID, "name": "x", "batch_price": {"input": 7, "output": 9}}
    models = [{**SMALL, "price": prices}, priced_model]
    vllm, cloud = make_config({**VLLM, "batch": True, "models": models}, CLOUD).backends
    tariff = vllm.find_batch_tariff(vllm.models[0])
    assert tariff is not None
    price = tariff.get_price_on(PRICES_CHECKED_ON)
    assert (price.select_rates(1).input, price.select_rates(1001).output) == (Decimal("0.5"), 5)
    assert price.select_rates(1).output == Decimal("0.000003"), "rounded up"
    other_tariff = vllm.find_batch_tariff(vllm.models[1])
    assert other_tariff is not None
    assert other_tariff.get_price_on(PRICES_CHECKED_ON).select_rates(1).input == 7
    assert cloud.find_batch_tariff(cloud.models[0]) is None
    (claude,) = make_config({**CLOUD, "batch": True}).backends
    halved_tariff = claude.find_batch_tariff(claude.models[0])
    assert halved_tariff is not None
    for tariff, factor in ((CLAUDE_TARIFFS["claude-haiku-5-5"], 1), (halved_tariff, 2)):
        rates = tariff.get_price_on(PRICES_CHECKED_ON).select_rates(0)
        assert (
            rates.output * factor
            == CLAUDE_TARIFFS["claude-haiku-5-5"]
            .get_price_on(PRICES_CHECKED_ON)
            .select_rates(0)
            .output
        )


def test_configured_price_overrides_the_table() -> None:
    (cloud,) = make_config(
        {**CLOUD, "models": [{**HAIKU, "price": {"input": 7, "output": 9}}]}
    ).backends
    assert (
        cloud.find_tariff(cloud.models[0]).get_price_on(PRICES_CHECKED_ON).select_rates(1).input
        == 7
    )


def test_model_may_be_priced_by_gpu_hour() -> None:
    (local,) = make_config(
        {**LOCAL, "models": [{**SMALL, "price": {"usd_per_gpu_hour": "0.6"}}]}
    ).backends
    assert local.models[0].gpu_rate == GpuRate(usd_per_hour=Decimal("0.6"))
    assert local.find_tariff(local.models[0]) is FREE_TARIFF


@pytest.mark.parametrize(
    ("tenants", "message"),
    [
        (
            {"ada": {"residency": ["mars"]}},
            "tenants.ada.residency: no back end has the residency 'mars'",
        ),
        ({"ada": {"models": ["big"]}}, "tenants.ada.models: there is no model or alias 'big'"),
        ({"ada": {"model": ["small"]}}, "Extra inputs"),
    ],
)
def test_mistake_about_tenants_is_reported(tenants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelsConfig.model_validate({"backends": [LOCAL], "tenants": tenants})


def test_local_back_ends_are_on_premises_by_default() -> None:
    models_config = make_config(
        LOCAL, CLOUD, {**VLLM, "models": [{**PAID, "name": "p"}], "residency": "eu"}
    )
    assert [backend.residency for backend in models_config.backends] == [
        "on-premises",
        "cloud",
        "eu",
    ]


def test_concurrent_calls_depend_on_the_kind_of_server() -> None:
    ollama = {
        "name": "gpu",
        "type": "ollama",
        "hosts": ["http://h:1"],
        "models": [{**SMALL, "name": "s"}],
    }
    models_config = make_config({**LOCAL, "server": {"parallel": 3}}, ollama, CLOUD)
    assert [backend.max_calls for backend in models_config.backends] == [3, 256, 256]


def make_operation_config(**model: Any) -> ModelsConfig:
    backend = {"name": "b", "type": "openai", "base_url": "http://127.0.0.1:9/v1"}
    return ModelsConfig.model_validate({"backends": [{**backend, "models": [model]}]})


def test_models_that_answer_no_chats_need_no_context() -> None:
    config = make_operation_config(name="m", abilities=["rerank"], price=0)
    [model] = config.backends[0].models
    assert not model.answers_chats and model.abilities == (Operation.RERANK,)
    with pytest.raises(ValueError, match="context"):
        make_operation_config(name="m", abilities=["transcription"], chat=True, price=0)
    chat_config = make_operation_config(
        name="m", context=9, abilities=["transcription"], chat=True, price=0
    )
    assert chat_config.backends[0].models[0].answers_chats
    embedding_config = make_operation_config(
        name="m", context=9, embeddings=True, abilities=["rerank"], price=0
    )
    assert not embedding_config.backends[0].models[0].answers_chats


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"abilities": ["chat"], "context": 1, "price": 0}, "abilities"),
        ({"abilities": ["sing"], "price": 0}, "abilities"),
        ({"abilities": ["speech"], "price": {"usd_per_second": 1}}, "price"),
        ({"abilities": ["speech"], "price": {"usd_per_minute": -1}}, "price"),
        ({"abilities": ["speech"]}, "price of 'm' is unknown"),
    ],
)
def test_invalid_abilities_and_unit_prices_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_operation_config(name="m", **model)


def test_only_back_ends_with_openais_api_have_abilities() -> None:
    model = {"name": "m", "context": 9, "abilities": ["speech"]}
    backend = {"name": "b", "type": "ollama", "hosts": ["http://a"], "models": [model]}
    with pytest.raises(ValueError, match="only back ends of type 'openai'"):
        ModelsConfig.model_validate({"backends": [backend]})


def test_prices_by_unit_may_be_joined_by_prices_of_tokens() -> None:
    price = {"usd_per_image": 0.04, "usd_per_minute": 0.006, "output": 40}
    config = make_operation_config(name="m", abilities=["image_edit"], price=price)
    [model] = config.backends[0].models
    assert model.unit_rates.compute_pico_cost(Unit.IMAGES, 2) == 8 * 10**10
    assert model.unit_rates.compute_pico_cost(Unit.SECONDS, 61) == 61 * 10**8
    assert model.unit_rates.compute_pico_cost(Unit.CHARACTERS, 1) == 0
    tariff = config.backends[0].find_tariff(model)
    assert tariff.prices[0].compute_pico_cost(Usage(input_tokens=5, output_tokens=1)) == 40 * 10**6
