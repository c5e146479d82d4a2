"""Defines the operator's rules for the judge model."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

# The ledger lists the judge's calls under this tenant, because the operator pays for them.
JUDGE_OWNER = "moyin:judge"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRules:
    """The operator's rules for judging answers.

    Attributes:
        share: the share of the suitable answers that is judged, from 0 to 1.
        model: the name of the judge's model or alias.
        second: the model that writes second answers. If None, it is the next better candidate for
            the request, or else the next cheaper one.
        usd_per_month: the budget for second answers and verdicts per UTC calendar month.
        max_prompt_tokens: the length, in tokens, of the longest conversation that is judged.
        max_answer_tokens: the length, in tokens, of the longest answer that is judged; also the
            token limit of second answers.
        parallel: the number of comparisons that one replica runs at a time.
    """

    share: float
    model: str
    usd_per_month: Decimal
    second: str | None = None
    max_prompt_tokens: int = 8_000
    max_answer_tokens: int = 2_000
    parallel: int = 1
