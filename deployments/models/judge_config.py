"""Defines and checks ``routing.judge`` of ``user_config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from moyin.text.judging.comparison import INSTRUCTION_TOKENS
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.verdict import MAX_VERDICT_TOKENS

__all__ = ["JudgeConfig", "check_judge"]


class _Model(Protocol):
    """Has the settings of `config.ModelConfig` that decide whether a model can judge."""

    @property
    def name(self) -> str: ...
    @property
    def quality(self) -> float: ...
    @property
    def schema_(self) -> bool: ...
    @property
    def embeddings(self) -> bool: ...
    @property
    def context(self) -> int: ...


class _Alias(Protocol):
    """Has the settings of `rules.AliasConfig` that select its models."""

    @property
    def models(self) -> Sequence[str]: ...
    @property
    def quality(self) -> float: ...


class JudgeConfig(BaseModel):
    """Configures the judge: a model that compares answers with those of a second model.

    The router learns from the verdicts (docs/routing.md). The calls are low-priority jobs that the
    operator pays for, within a budget.

    Attributes:
        share: share of the answers to ``auto`` and aliases that may be judged; 0: none.
        model: model or alias that judges. It must support JSON schemas and never judges its own
            answers.
        second: model to compare with; None: the next better candidate, else the next cheaper one.
        usd_per_month: budget for second answers and verdicts together, by UTC calendar month.
        max_prompt_tokens: longer conversations are not judged.
        max_answer_tokens: longer answers are not judged, and second answers are cut off here.
        parallel: comparisons that one replica works on at a time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(ge=0, le=1, allow_inf_nan=False)
    model: str = Field(min_length=1)
    usd_per_month: Decimal = Field(ge=0, le=1_000_000, allow_inf_nan=False)
    second: str | None = None
    max_prompt_tokens: int = Field(8_000, ge=1, le=100_000)
    max_answer_tokens: int = Field(2_000, ge=1, le=32_000)
    parallel: int = Field(1, ge=1, le=16)

    def rules(self) -> JudgeRules | None:
        """Return the rules of the judge; None if the share is 0."""
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


def check_judge(
    judge: JudgeConfig, models: Sequence[_Model], aliases: Mapping[str, _Alias]
) -> None:
    """Check that the judge is able to judge and that there are two other models to compare.

    Raises:
        ValueError: with the field and the reason.
    """
    alias = aliases.get(judge.model)
    names = {judge.model} if alias is None else set(alias.models)
    judges = [
        model
        for model in models
        if (not names or model.name in names) and (alias is None or model.quality >= alias.quality)
    ]
    if not judges:
        raise ValueError(f"routing.judge.model: no model or alias {judge.model!r}")
    able = [model for model in judges if model.schema_ and not model.embeddings]
    if not able:
        raise ValueError(
            f"routing.judge.model: no model of {judge.model!r} has 'schema: true', which a judge needs"
        )
    needed = judge.max_answer_tokens + INSTRUCTION_TOKENS + MAX_VERDICT_TOKENS
    if all(model.context <= needed for model in able):
        raise ValueError(
            f"routing.judge.model: the context of {judge.model!r} must be above {needed} tokens, so "
            "that a conversation and two answers fit; choose another model or lower "
            "routing.judge.max_answer_tokens"
        )
    chat_models = {model.name for model in models if not model.embeddings}
    if len(chat_models - {model.name for model in judges}) < 2:
        raise ValueError(
            f"routing.judge.model: there must be two chat models besides {judge.model!r} to compare, "
            "because a judge never judges its own answers"
        )
    second = judge.second
    if second is None:
        return
    if second not in chat_models:
        raise ValueError(f"routing.judge.second: no chat model {second!r}")
    if any(model.name == second for model in judges):
        raise ValueError(
            f"routing.judge.second: {second!r} would judge its own answers; choose a model other than "
            f"those of {judge.model!r}"
        )
