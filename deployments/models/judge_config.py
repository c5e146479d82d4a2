"""The judge in ``user_config``, under ``routing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from moyin.text.judging.comparison import FRAME_TOKENS
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.verdict import LONGEST_VERDICT

__all__ = ["JudgeConfig", "check_judge"]


class _Model(Protocol):
    """The settings of a model that decide whether it can judge (`config.ModelConfig`)."""

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
    """The settings of an alias that decide who stands for it (`rules.AliasConfig`)."""

    @property
    def models(self) -> Sequence[str]: ...
    @property
    def quality(self) -> float: ...


class JudgeConfig(BaseModel):
    """A model that compares a share of the answers with those of a second model, so that the router
    learns (docs/routing.md). Its calls are the operator's, low-priority jobs within a budget.

    Attributes:
        share: of the answers to ``auto`` and aliases that may be judged; 0: none.
        model: the judge: a model or an alias. It must answer to JSON schemas, and never judges
            answers of its own.
        second: model to compare with; None: the next better candidate, else the next cheaper one.
        usd_per_month: budget of a UTC calendar month for second answers and verdicts together.
        max_prompt_tokens: longer conversations are not judged.
        max_answer_tokens: longer answers are not judged, and second ones are not made longer.
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
        """Return the rules; None where nothing is to be judged."""
        if not self.share:
            return None
        return JudgeRules(
            share=self.share,
            model=self.model,
            second=self.second,
            usd_per_month=self.usd_per_month,
            most_prompt_tokens=self.max_prompt_tokens,
            most_answer_tokens=self.max_answer_tokens,
            parallel=self.parallel,
        )


def check_judge(
    judge: JudgeConfig, models: Sequence[_Model], aliases: Mapping[str, _Alias]
) -> None:
    """See that the judge can judge, and that there are two other models to compare.

    Raises:
        ValueError: naming the field.
    """
    alias = aliases.get(judge.model)
    names = {judge.model} if alias is None else set(alias.models)
    judges = [
        one
        for one in models
        if (not names or one.name in names) and (alias is None or one.quality >= alias.quality)
    ]
    if not judges:
        raise ValueError(f"routing.judge.model: no model or alias {judge.model!r}")
    able = [one for one in judges if one.schema_ and not one.embeddings]
    if not able:
        raise ValueError(
            f"routing.judge.model: no model of {judge.model!r} has 'schema: true'; a judge answers to "
            "a JSON schema"
        )
    shortest = judge.max_answer_tokens + FRAME_TOKENS + LONGEST_VERDICT
    if all(one.context <= shortest for one in able):
        raise ValueError(
            f"routing.judge.model: the context of {judge.model!r} must be above {shortest} tokens, so "
            "that a conversation and two answers fit: name another, or lower "
            "routing.judge.max_answer_tokens"
        )
    if len({one.name for one in models if not one.embeddings} - {one.name for one in judges}) < 2:
        raise ValueError(
            f"routing.judge.model: beside {judge.model!r} there must be two models that answer, one to "
            "compare with the other: no judge judges its own answers"
        )
    second = judge.second
    if second is None:
        return
    if not any(one.name == second and not one.embeddings for one in models):
        raise ValueError(f"routing.judge.second: no model {second!r} that answers")
    if any(one.name == second for one in judges):
        raise ValueError(
            f"routing.judge.second: {second!r} would judge its own answers; name a model that "
            f"{judge.model!r} does not stand for"
        )
