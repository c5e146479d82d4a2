"""The operator's monthly budget for the judge, counted in Valkey like those of tenants."""

from __future__ import annotations

from decimal import Decimal

from moyin.access.gatekeeper.limits import Admission, Meter
from moyin.domain.limits import Limit
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules

__all__ = ["JudgeBudget"]

_SUBJECT = f"owner:{JUDGE_OWNER}"


class JudgeBudget:
    """Reserves the worst case before each call and settles it to what the call cost, in one place for
    all replicas. A call whose replica dies stays booked in full: only the provider knows its cost.

    Args:
        meter: must refuse to spend when Valkey is away.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def for_call(self, rules: JudgeRules) -> Admission:
        """Return what one call is paid from; its owner releases it."""
        limit = Limit(subject=_SUBJECT, usd_per_month=rules.usd_per_month)
        return Admission(self._meter, [limit], JUDGE_OWNER)

    async def spent(self) -> Decimal:
        """Return what counts against this month's budget, in US dollars.

        Raises:
            ServiceUnavailable: Valkey does not answer.
        """
        return await self._meter.spent_this_month(_SUBJECT, JUDGE_OWNER)
