"""Defines the operator's budget for the judge model."""

from __future__ import annotations

from decimal import Decimal

from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.limits import Limit
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules

_BUDGET_SUBJECT = f"owner:{JUDGE_OWNER}"


class JudgeBudget:
    """The operator's monthly budget for the judge, which all replicas share in Valkey.

    Each call reserves its highest possible cost and later settles its real cost. If the replica
    dies in between, the reservation remains, because only the provider knows the real cost.

    Args:
        meter: counts the cost. It must refuse calls while Valkey is unavailable.
    """

    def __init__(self, meter: RequestMeter) -> None:
        self._meter = meter

    def create_admission(self, rules: JudgeRules) -> Admission:
        """Create the budget reservation of one model call; the caller must release it."""
        limit = Limit(subject=_BUDGET_SUBJECT, usd_per_month=rules.usd_per_month)
        return Admission(self._meter, [limit], JUDGE_OWNER)

    async def read_spent_usd(self) -> Decimal:
        """Return the US dollars of this month's budget that are spent or reserved.

        Raises:
            ServiceUnavailable: Valkey does not answer.
        """
        return await self._meter.budgets.get_month_spending(_BUDGET_SUBJECT, JUDGE_OWNER)
