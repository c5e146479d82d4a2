"""Summarizes the judge's verdicts and spending in this month for ``GET /v1/quality``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Protocol

from moyin.domain.identity import OPERATOR, Identity
from moyin.errors import ServiceUnavailable
from moyin.store.quality import QualityStore
from moyin.store.sql import now
from moyin.text.judging.comparison import derive_comparison_id
from moyin.text.judging.rules import JudgeRules

# Maximum number of a tenant's verdicts that are counted per month.
_MAX_VERDICTS = 20_000


class JudgeStatus(Protocol):
    """Provides the judge's rules and spending."""

    @property
    def rules(self) -> JudgeRules | None:
        """The current rules, or None while the judge is off."""

    async def get_spending(self) -> Decimal:
        """Return the judge's spending in this calendar month in US dollars.

        Raises:
            ServiceUnavailable: the spending is unknown because Valkey does not respond.
        """


async def summarize_verdicts(
    quality_store: QualityStore, judge: JudgeStatus | None, caller: Identity
) -> dict[str, Any] | None:
    """Count the verdicts about answers to the caller's tenant in this calendar month (UTC).

    Returns:
        The counts, with the spending for operators only, because it is the sum over all tenants.
        None if the judge is off and there are no verdicts.
    """
    month_start = now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    scores = await quality_store.list_verdicts(caller.owner, month_start, _MAX_VERDICTS)
    rules = None if judge is None else judge.rules
    if rules is None and not scores:
        return None
    # Thousands of hashes take milliseconds, too long for the event loop.
    judged_count, agreed_count = await asyncio.to_thread(count_agreements, caller.owner, scores)
    counts: dict[str, Any] = {
        "share": 0.0 if rules is None else rules.share,
        "judged": judged_count,
        "agreed": agreed_count,
    }
    if judge is None or rules is None or not caller.has_scope(OPERATOR):
        return counts
    try:
        spent_usd = float(await judge.get_spending())
    except ServiceUnavailable:
        spent_usd = None
    return {**counts, "spent_usd": spent_usd, "usd_per_month": float(rules.usd_per_month)}


def count_agreements(owner: str, scores: Iterable[tuple[str, float]]) -> tuple[int, int]:
    """Return how many answers were judged, and how many were at least as good as the second answer.

    Args:
        scores: pairs of an id and a score. The id of a judged answer is its request id; the id of a
            second answer is derived from it by `derive_comparison_id`.
    """
    scores_by_id = dict(scores)
    pairs = [
        (score, scores_by_id[comparison_id])
        for request_id, score in scores_by_id.items()
        if (comparison_id := derive_comparison_id(owner, request_id)) in scores_by_id
    ]
    return len(pairs), sum(first_score >= second_score for first_score, second_score in pairs)
