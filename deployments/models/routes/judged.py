"""Summarises the judge's verdicts and spending of this month for ``GET /v1/quality``."""

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

__all__ = ["JudgeStatus", "agreements", "judge_summary"]

# At most so many verdicts of a tenant and month are counted.
_MAX_VERDICTS = 20_000


class JudgeStatus(Protocol):
    """Provides the judge's rules and spending."""

    @property
    def rules(self) -> JudgeRules | None:
        """The current rules; None while the judge is off."""

    async def spent(self) -> Decimal:
        """Return this month's spending in US dollars.

        Raises:
            ServiceUnavailable: the spending cannot be read at present.
        """


async def judge_summary(
    store: QualityStore, judge: JudgeStatus | None, caller: Identity
) -> dict[str, Any] | None:
    """Count the verdicts of the caller's tenant in this UTC month; None if the judge is not in use.

    Only operators see the spending, because it is the sum over all tenants.
    """
    since = now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    scores = await store.verdicts(caller.owner, since, _MAX_VERDICTS)
    rules = None if judge is None else judge.rules
    if rules is None and not scores:
        return None
    # Thousands of hashes take milliseconds, too long for the event loop.
    total, agreed = await asyncio.to_thread(agreements, caller.owner, scores)
    counts: dict[str, Any] = {
        "share": 0.0 if rules is None else rules.share,
        "judged": total,
        "agreed": agreed,
    }
    if judge is None or rules is None or not caller.has_scope(OPERATOR):
        return counts
    try:
        spent = float(await judge.spent())
    except ServiceUnavailable:
        spent = None
    return {**counts, "spent_usd": spent, "usd_per_month": float(rules.usd_per_month)}


def agreements(owner: str, scores: Iterable[tuple[str, float]]) -> tuple[int, int]:
    """Count the judged answers, and those that were at least as good as the second answer.

    Args:
        scores: pairs of request id and score. A second answer has the id of the comparison.
    """
    by_id = dict(scores)
    pairs = [
        (score, by_id[other])
        for request_id, score in by_id.items()
        if (other := derive_comparison_id(owner, request_id)) in by_id
    ]
    return len(pairs), sum(first >= second for first, second in pairs)
