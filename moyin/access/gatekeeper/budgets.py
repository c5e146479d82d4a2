"""Reads and describes the state of budgets: limit, spent, reserved and remaining amounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.domain.limits import Limit
from moyin.errors import ServiceUnavailable

_NANO = 10**9
_PERIOD_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m"}
# The members of a subject's money in Valkey; ``day_nano`` includes ``day_reserved``.
_MONEY_FIELDS = ("day", "day_nano", "day_reserved", "month", "month_nano", "month_reserved")


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetState:
    """The state of one budget in its current period; amounts are in US dollars.

    Attributes:
        subject: the key, user or tenant: ``key:<id>``, ``user:<id>`` or ``owner:<tenant>``.
        period: ``day`` or ``month``, both in UTC.
        spent: the cost of calls that have ended.
        reserved: the maximum cost of running calls. If their replica is killed, the amount stays
            reserved until the period ends.
        resets_at: the end of the period, in ISO 8601.
    """

    subject: str
    period: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    resets_at: str

    @property
    def remaining(self) -> Decimal:
        """The amount in US dollars that is neither spent nor reserved."""
        return max(self.limit - self.spent - self.reserved, Decimal(0))

    def to_details(self) -> dict[str, str]:
        """Return the members that errors and reports show, with exact amounts as text."""
        return {
            "limit": f"usd_per_{self.period}",
            "of": self.subject.partition(":")[0],
            "limit_usd": format_amount(self.limit),
            "spent_usd": format_amount(self.spent),
            "reserved_usd": format_amount(self.reserved),
            "left_usd": format_amount(self.remaining),
            "resets_at": self.resets_at,
        }


class BudgetReader:
    """Reads the spent and reserved amounts of budgets from Valkey."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection

    async def list_states(self, limits: Sequence[Limit], owner: str) -> list[BudgetState]:
        """Return the state of every budget in ``limits``, or raise `ServiceUnavailable`."""
        limits_with_budget = [limit for limit in limits if limit.has_budget]
        fields_of_subjects = await self._read_amounts(
            [limit.subject for limit in limits_with_budget], owner
        )
        return [
            build_budget_state(limit, period, *_parse_period(fields, period))
            for limit, fields in zip(limits_with_budget, fields_of_subjects, strict=True)
            for period in ("day", "month")
            if _get_budget(limit, period) is not None
        ]

    async def get_month_spending(self, subject: str, owner: str) -> Decimal:
        """Return the US dollars spent and reserved in this month, or raise `ServiceUnavailable`."""
        [fields] = await self._read_amounts([subject], owner)
        booked_nano_usd, _ = _parse_period(fields, "month")
        return Decimal(booked_nano_usd) / _NANO

    async def _read_amounts(self, subjects: Sequence[str], owner: str) -> list[dict[str, str]]:
        if not subjects:
            return []
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for subject in subjects:
                    pipeline.hmget(build_key(owner, subject, "money"), _MONEY_FIELDS)
                replies = await pipeline.execute()
        except RedisError as error:
            raise ServiceUnavailable(
                "budgets cannot be read at the moment; try again", retry_after=1
            ) from error
        return [
            {
                name: value.decode()
                for name, value in zip(_MONEY_FIELDS, reply, strict=True)
                if value is not None
            }
            for reply in replies
        ]


def build_key(owner: str, subject: str, kind: str) -> str:
    """Return the Valkey key that counts one ``kind`` of a subject's usage, such as ``money``."""
    return f"moyin:limit:{{{owner}}}:{subject}:{kind}"


def build_budget_state(
    limit: Limit, period: str, booked_nano_usd: int, reserved_nano_usd: int
) -> BudgetState:
    """Return the state of a limit's budget for ``day`` or ``month``.

    Args:
        booked_nano_usd: billionths of a US dollar that are spent or reserved.
        reserved_nano_usd: the reserved part of ``booked_nano_usd``.
    """
    # The scripts of an older version, which do not count reservations, may have started a new
    # period.
    reserved_nano_usd = min(reserved_nano_usd, booked_nano_usd)
    budget_usd = _get_budget(limit, period)
    assert budget_usd is not None, f"{limit.subject} has no budget for a {period}"
    return BudgetState(
        subject=limit.subject,
        period=period,
        limit=budget_usd,
        spent=Decimal(booked_nano_usd - reserved_nano_usd) / _NANO,
        reserved=Decimal(reserved_nano_usd) / _NANO,
        resets_at=get_next_period_start(period),
    )


def _get_budget(limit: Limit, period: str) -> Decimal | None:
    return limit.usd_per_day if period == "day" else limit.usd_per_month


def _parse_period(fields: Mapping[str, str], period: str) -> tuple[int, int]:
    """Return the booked and the reserved amount of this period, in billionths of a US dollar.

    Args:
        fields: the fields of a subject's hash in Valkey. Amounts of an earlier period count as 0.
        period: ``day`` or ``month``.
    """
    if fields.get(period) != f"{datetime.now(UTC):{_PERIOD_FORMATS[period]}}":
        return 0, 0
    return int(fields.get(f"{period}_nano", 0)), int(fields.get(f"{period}_reserved", 0))


def get_next_period_start(period: str) -> str:
    """Return the start of the next UTC day or month in ISO 8601."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        # The first day of a month plus 31 days is in the next month.
        return (today.replace(day=1) + timedelta(days=31)).replace(day=1).isoformat()
    return (today + timedelta(days=1)).isoformat()


def format_amount(usd: Decimal) -> str:
    """Format US dollars exactly, without exponent or trailing zeros."""
    amount = f"{usd:f}"
    return amount.rstrip("0").rstrip(".") if "." in amount else amount
