"""Holds the operator's monthly budget for the judge, counted in Valkey like tenants' budgets."""

from __future__ import annotations

from decimal import Decimal

from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.limits import Limit
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules

__all__ = ["JudgeBudget"]

_SUBJECT = f"owner:{JUDGE_OWNER}"


class JudgeBudget:
    """Reserves the highest possible cost before each call and settles the real cost after it.

    All replicas share it. A call whose replica dies stays charged in full, because only the
    provider knows its cost.

    Args:
        meter: must refuse to spend while Valkey is unavailable.
    """

    def __init__(self, meter: RequestMeter) -> None:
        self._meter = meter

    def for_call(self, rules: JudgeRules) -> Admission:
        """Return the budget reservation of one call; its owner releases it."""
        limit = Limit(subject=_SUBJECT, usd_per_month=rules.usd_per_month)
        return Admission(self._meter, [limit], JUDGE_OWNER)

    async def spent(self) -> Decimal:
        """Return the US dollars charged to this month's budget.

        Raises:
            ServiceUnavailable: Valkey does not answer.
        """
        return await self._meter.get_month_spending(_SUBJECT, JUDGE_OWNER)
