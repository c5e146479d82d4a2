"""Defines ``routing.judge`` in ``user_config`` and checks it against the configured models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from pydantic import Field

from deployments.replicas import StrictModel
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.verdict import INSTRUCTION_TOKENS, MAX_VERDICT_TOKENS


class _ModelSettings(Protocol):
    """The settings of `config.ModelConfig` that determine whether a model can judge."""

    @property
    def name(self) -> str: ...
    @property
    def quality(self) -> float: ...
    @property
    def schema_(self) -> bool: ...
    @property
    def embeddings(self) -> bool: ...
    @property
    def context(self) -> int | None: ...


class _AliasSettings(Protocol):
    """The settings of `routing_config.AliasConfig` that select the models of an alias."""

    @property
    def models(self) -> Sequence[str]: ...
    @property
    def quality(self) -> float: ...


class JudgeConfig(StrictModel):
    """Configures the judge, a model that compares the answers of two other models.

    The router learns from the verdicts (docs/routing.md). The judge's calls are low-priority jobs,
    which the operator pays for within a budget.

    Attributes:
        share: share of the answers to ``auto`` and aliases that may be judged, from 0 to 1.
        model: judging model or alias. It must support JSON schemas and never judges its own answers.
        second: model that gives the second answer; if None, the next better candidate or else the
            next cheaper one.
        usd_per_month: budget for second answers and verdicts per calendar month in UTC.
        max_prompt_tokens: length above which conversations are not judged.
        max_answer_tokens: length above which answers are not judged and second answers are cut off.
        parallel: number of comparisons that a replica runs concurrently.
    """

    share: float = Field(ge=0, le=1, allow_inf_nan=False)
    model: str = Field(min_length=1)
    usd_per_month: Decimal = Field(ge=0, le=1_000_000, allow_inf_nan=False)
    second: str | None = None
    max_prompt_tokens: int = Field(8_000, ge=1, le=100_000)
    max_answer_tokens: int = Field(2_000, ge=1, le=32_000)
    parallel: int = Field(1, ge=1, le=16)

    def to_rules(self) -> JudgeRules | None:
        """Return the rules of the judge, or None if the share is 0."""
        if not self.share:
            return None
        return JudgeRules(
            share=self.share,
            model=self.model,
            second=self.second,
            usd_per_month=self.usd_per_month,
            max_prompt_tokens=self.max_prompt_tokens,
            max_answer_tokens=self.max_answer_tokens,
            parallel=self.parallel,
        )


def check_judge_config(
    judge: JudgeConfig,
    models: Sequence[_ModelSettings],
    aliases: Mapping[str, _AliasSettings],
    *,
    names_are_known: bool,
) -> None:
    """Raise ValueError unless the judge model is suitable and two other models can be compared.

    Args:
        names_are_known: False if more models may be discovered on servers later. Then it is not
            checked whether there are two other models.
    """
    alias = aliases.get(judge.model)
    names = {judge.model} if alias is None else set(alias.models)
    judges = [
        model
        for model in models
        if (not names or model.name in names) and (alias is None or model.quality >= alias.quality)
    ]
    if not judges:
        raise ValueError(
            f"routing.judge.model: no model or alias {judge.model!r}; name a configured model"
        )
    suitable_models = [model for model in judges if model.schema_ and not model.embeddings]
    if not suitable_models:
        raise ValueError(
            f"routing.judge.model: no model of {judge.model!r} has 'schema: true'; name a model that has it"
        )
    required_tokens = judge.max_answer_tokens + INSTRUCTION_TOKENS + MAX_VERDICT_TOKENS
    if all(
        model.context is not None and model.context <= required_tokens for model in suitable_models
    ):
        raise ValueError(
            f"routing.judge.model: the context of {judge.model!r} must be above {required_tokens} tokens, so "
            "that a conversation and two answers fit; choose another model or lower "
            "routing.judge.max_answer_tokens"
        )
    chat_models = {model.name for model in models if not model.embeddings}
    if names_are_known and len(chat_models - {model.name for model in judges}) < 2:
        raise ValueError(
            f"routing.judge.model: there must be two chat models besides {judge.model!r} to compare, "
            "because a judge never judges its own answers"
        )
    second_model = judge.second
    if second_model is None:
        return
    if names_are_known and second_model not in chat_models:
        raise ValueError(
            f"routing.judge.second: no chat model {second_model!r}; name a configured model or omit it"
        )
    if any(model.name == second_model for model in judges):
        raise ValueError(
            f"routing.judge.second: {second_model!r} would judge its own answers; choose a model other than "
            f"those of {judge.model!r}"
        )
