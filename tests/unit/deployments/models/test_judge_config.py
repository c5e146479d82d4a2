"""Tests that `routing.judge` is optional, and that its errors name the field."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.models.config import ModelsConfig
from deployments.models.routing_config import build_policies
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules
from moyin.text.routing.catalog import UNRESTRICTED
from tests.unit.deployments.models.test_config import HAIKU, LOCAL, VLLM

OPUS = {"name": "claude-opus-5-5", "context": 200_000, "schema": True, "quality": 4}
VECTORS = {**VLLM, "models": [{"name": "v", "context": 9, "embeddings": True, "price": 0}]}
BRIEF = {"name": "brief-one", "context": 33_200, "schema": True, "price": 0}
SHORT = {**VLLM, "name": "short", "models": [BRIEF]}
CLAUDE = {"name": "claude", "type": "anthropic", "models": [HAIKU, OPUS]}
JUDGE = {"share": 0.1, "model": "claude-opus-5-5", "usd_per_month": 5}


def make_config(judge: Any, tenants: Any = None, **aliases: Any) -> ModelsConfig:
    return ModelsConfig.model_validate(
        {
            "backends": [LOCAL, CLAUDE, VECTORS, SHORT],
            "aliases": aliases,
            "tenants": tenants or {},
            "routing": {"judge": judge},
        }
    )


def test_judge_is_off_unless_configured() -> None:
    assert ModelsConfig().routing.judge is None
    judge = make_config({**JUDGE, "share": 0}).routing.judge
    assert judge is not None and judge.to_rules() is None


def test_judge_rules_follow_the_configuration() -> None:
    judge = make_config({**JUDGE, "second": "small", "usd_per_month": "0.1"}).routing.judge
    assert judge is not None
    assert judge.to_rules() == JudgeRules(
        share=0.1, model="claude-opus-5-5", second="small", usd_per_month=Decimal("0.1")
    )


def test_an_alias_may_be_the_judge() -> None:
    assert make_config({**JUDGE, "model": "smart"}, smart={"quality": 4}).routing.judge is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.1}, "routing.judge.share"),
        ({"share": -0.1}, "routing.judge.share"),
        ({"share": float("nan")}, "routing.judge.share"),
        ({"share": None}, "routing.judge.share"),
        ({"usd_per_month": -1}, "routing.judge.usd_per_month"),
        ({"usd_per_month": "inf"}, "routing.judge.usd_per_month"),
        ({"parallel": 0}, "routing.judge.parallel"),
        ({"max_prompt_tokens": 0}, "routing.judge.max_prompt_tokens"),
        ({"budget": 5}, "routing.judge.budget"),
        ({"model": "gpt"}, "routing.judge.model: no model or alias 'gpt'"),
        ({"model": "auto"}, "routing.judge.model: no model or alias 'auto'"),
        ({"model": "small"}, "no model of 'small' has 'schema: true'"),
        (
            {"model": "all"},
            "routing.judge.model: there must be two chat models besides 'all'",
        ),
        ({"model": "most"}, "routing.judge.model: there must be two chat models besides 'most'"),
        (
            {"max_answer_tokens": 32_000, "model": "brief"},
            "routing.judge.model: the context of 'brief' must be above 33200 tokens",
        ),
        ({"second": "gpt"}, "routing.judge.second: no chat model 'gpt'"),
        ({"second": "v"}, "routing.judge.second: no chat model 'v'"),
        ({"second": "claude-opus-5-5"}, "would judge its own answers"),
    ],
)
def test_error_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as exc_info:
        make_config(
            {**JUDGE, **changes},
            all={},
            most={"models": ["small", "claude-opus-5-5", "brief-one"]},
            brief={"models": ["brief-one"]},
        )
    error = exc_info.value.errors()[0]
    assert message in f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def test_internal_owner_is_refused_as_tenant() -> None:
    with pytest.raises(ValidationError, match=r"tenants\.moyin:judge: names that begin with"):
        make_config(JUDGE, {"moyin:judge": {"residency": ["on-premises"]}})


def test_share_model_and_budget_are_required() -> None:
    for name in JUDGE:
        with pytest.raises(ValidationError, match=f"routing.judge.{name}"):
            make_config({key: value for key, value in JUDGE.items() if key != name})


@pytest.mark.parametrize(
    ("tenants", "expected_judging"),
    [
        ({}, {}),
        ({"a": {"judge": False}, "b": {}}, {"a": False, "b": True}),
        (
            {"*": {"judge": False}, "a": {}, "b": {"judge": True}},
            {"*": False, "a": False, "b": True},
        ),
    ],
)
def test_tenants_can_opt_out_of_and_into_judging(
    tenants: dict[str, Any], expected_judging: dict[str, bool]
) -> None:
    policies = build_policies(make_config(JUDGE, tenants).tenants)
    assert policies.pop(JUDGE_OWNER) == UNRESTRICTED
    assert {owner: policy.is_judged for owner, policy in policies.items()} == expected_judging
