from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.models.config import ModelsConfig
from moyin.routing.prices import CHECKED_ON, CLAUDE

SMALL = {"name": "small", "context": 2048}
HAIKU = {"name": "claude-haiku-5-5", "context": 1_000_000}
LOCAL = {"name": "local", "type": "llamacpp", "models": [SMALL]}
CLOUD = {"name": "claude", "type": "anthropic", "models": [HAIKU]}
VLLM = {"name": "vllm", "type": "openai", "base_url": "http://h:1/v1/"}
PAID = {**SMALL, "price": {"input": 0.1, "output": 0}}


def config(*backends: dict[str, Any], **aliases: Any) -> ModelsConfig:
    return ModelsConfig.model_validate({"backends": backends, "aliases": aliases})


def test_prices_come_from_the_configuration_the_table_or_the_kind_of_back_end() -> None:
    read = config(LOCAL, CLOUD, {**VLLM, "models": [{**PAID, "name": "paid"}]}, fast=["small"])
    local, cloud, vllm = read.backends
    assert local.tariff(local.models[0]).on(CHECKED_ON).rates(0).output == 0
    assert cloud.tariff(cloud.models[0]) is CLAUDE["claude-haiku-5-5"]
    assert vllm.tariff(vllm.models[0]).on(CHECKED_ON).rates(0).input == Decimal("0.1")
    assert read.aliases["fast"].models == ("small",)


def test_the_name_upstream_finds_the_price() -> None:
    renamed = {**HAIKU, "name": "cheap", "upstream": "claude-haiku-5-5"}
    (cloud,) = config({**CLOUD, "models": [renamed]}).backends
    assert cloud.tariff(cloud.models[0]) is CLAUDE["claude-haiku-5-5"]


@pytest.mark.parametrize(
    ("backends", "aliases", "told"),
    [
        ([{**VLLM, "models": [SMALL]}], {}, "price of 'small' is not known"),
        ([{**CLOUD, "models": [{**HAIKU, "name": "claude-next"}]}], {}, "price of 'claude-next'"),
        ([LOCAL, LOCAL], {}, "same name"),
        ([LOCAL], {"fast": ["big"]}, "no model 'big'"),
        ([LOCAL], {"small": ["small"]}, "is the name of a model"),
        ([{**LOCAL, "models": [{**SMALL, "name": "auto"}]}], {}, "the router chooses"),
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
    ],
)
def test_mistakes_are_told(backends: list[Any], aliases: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config(*backends, **aliases)
