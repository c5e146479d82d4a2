"""The judge in ``GET /v1/quality``: what it found this month, and what that cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Protocol

from moyin.domain.identity import OPERATOR, Identity
from moyin.errors import ServiceUnavailable
from moyin.store.quality import QualityStore
from moyin.store.sql import now
from moyin.text.judging.comparison import comparison_id
from moyin.text.judging.rules import JudgeRules

__all__ = ["JudgeBooks", "agreements", "judged"]

# Verdicts of one tenant and month that are counted.
_MOST = 20_000


class JudgeBooks(Protocol):
    """What the judge is allowed, and what it has spent."""

    @property
    def rules(self) -> JudgeRules | None: ...

    async def spent(self) -> Decimal:
        """Return what counts against this month's budget, in US dollars.

        Raises:
            ServiceUnavailable: nobody can tell now.
        """


async def judged(
    store: QualityStore, judge: JudgeBooks | None, caller: Identity
) -> dict[str, Any] | None:
    """Return the caller's verdicts of this UTC month; None where nothing was or will be judged.

    What all tenants' comparisons cost together is the operator's to see.
    """
    since = now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    scores = await store.verdicts(caller.owner, since, _MOST)
    rules = None if judge is None else judge.rules
    if rules is None and not scores:
        return None
    # Thousands of digests, which take as many microseconds.
    found, agreed = await asyncio.to_thread(agreements, caller.owner, scores)
    counts: dict[str, Any] = {
        "share": 0.0 if rules is None else rules.share,
        "judged": found,
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
    """Return how many answers were judged, and of how many the judge found that the client's answer
    was no worse.

    Args:
        scores: by request id; the second answer's is under the id of the comparison.
    """
    by_id = dict(scores)
    pairs = [
        (score, by_id[other])
        for request_id, score in by_id.items()
        if (other := comparison_id(owner, request_id)) in by_id
    ]
    return len(pairs), sum(given >= other for given, other in pairs)
