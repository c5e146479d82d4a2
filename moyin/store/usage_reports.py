"""Reads the usage ledger: lists calls, and sums their tokens and costs by groups."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from itertools import chain
from typing import Any

import sqlalchemy as sa

from moyin.domain.operation import RENDER
from moyin.errors import InvalidRequest, Overloaded
from moyin.store.cursors import build_older_condition, encode_cursor
from moyin.store.schema import api_keys, jobs, sessions, usage
from moyin.store.sql import Database
from moyin.store.usage import CANCELLED, CallStatus, UsageEntry, nano_to_usd, parse_entry

# The maximum number of rows that the database returns for one report.
_MAX_SUMS = 20_000
# Sums over a million calls take seconds, so a replica computes one after the other.
_MAX_WAITING = 8
# A tenant's reports must not keep others from theirs.
_MAX_WAITING_PER_OWNER = 2
_SUMMED = (
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "quantity",
    "load_milliseconds",
    "cost_nano_usd",
)


class GroupBy(StrEnum):
    """The property of calls by which a report sums their usage.

    Attributes:
        USER: the user who owns the key or had the session; None for keys of the tenant itself, and
            for sessions that have been deleted since.
        TEMPLATE: the first template of the job of a render; None for all other calls.
    """

    DAY = "day"
    MODEL = "model"
    BACKEND = "backend"
    OWNER = "owner"
    KEY = "key"
    OPERATION = "operation"
    USER = "user"
    TEMPLATE = "template"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFilter:
    """Selects calls of the ledger; None means no condition.

    Attributes:
        owner: the tenant; None for all tenants.
        since: the earliest time of the calls.
        until: the time before which the calls were recorded.
    """

    owner: str | None
    key_id: str | None = None
    backend: str | None = None
    model: str | None = None
    requested_model: str | None = None
    status: CallStatus | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceClasses:
    """Divides calls into classes; a model has the same prices per token for all calls of a class.

    A report of what another model would have cost needs one sum for each class.

    Attributes:
        prompt_bounds: ascending numbers of prompt tokens at which prices change.
        embeddings: names of the models that return embeddings.
    """

    prompt_bounds: tuple[int, ...] = ()
    embeddings: frozenset[str] = frozenset()


# Not frozen, since a report creates thousands.
@dataclass(kw_only=True, slots=True)
class UsageSum:
    """The usage of the calls of one group and one price class.

    Attributes:
        group: the values of the properties by which the calls are grouped.
        band: the number of those ``PriceClasses.prompt_bounds`` that the prompts of this class
            exceed.
        unit: the unit of `quantity`; None for chats and embeddings.
        input_tokens: all tokens of prompts, ``cached_tokens`` included.
    """

    group: tuple[str | None, ...]
    band: int
    is_embedding: bool
    is_complete: bool
    unit: str | None
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    quantity: int
    load_milliseconds: int
    cost_usd: Decimal


class UsageReports:
    """Lists the calls in the ledger, and sums their usage."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._summing = asyncio.Lock()
        self._waiting: Counter[str | None] = Counter()

    async def list_calls(
        self, call_filter: CallFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[list[UsageEntry], str | None]:
        """Return a page of calls, newest first, and the cursor of the next page.

        Calls that are recorded between two requests do not shift the later pages.

        Args:
            cursor: the cursor that the previous page returned, or None for the first page.

        Raises:
            InvalidRequest: ``cursor`` is not the cursor of a page.
        """
        query = sa.select(usage).where(*_build_conditions(call_filter))
        if cursor is not None:
            query = query.where(build_older_condition(usage, cursor))
        query = query.order_by(usage.c.created_at.desc(), usage.c.id.desc()).limit(limit + 1)
        rows = await self._database.fetch_all(query)
        page = [parse_entry(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return page, None
        last_row = rows[limit - 1]
        created_at = page[-1].created_at
        assert created_at is not None
        return page, encode_cursor(created_at, last_row["id"])

    async def sum_calls(
        self, call_filter: CallFilter, group_by: Sequence[GroupBy], price_classes: PriceClasses
    ) -> list[UsageSum]:
        """Return the usage of calls by groups and price classes; raise the errors of `sum_by_groupings`."""
        [sums] = await self.sum_by_groupings(call_filter, [group_by], price_classes)
        return sums

    async def sum_by_groupings(
        self,
        call_filter: CallFilter,
        groupings: Sequence[Sequence[GroupBy]],
        price_classes: PriceClasses,
    ) -> list[list[UsageSum]]:
        """Return, for each grouping, the usage of calls by its groups and by price classes.

        The calls are read once for all groupings, because reading takes most of the time.

        Raises:
            InvalidRequest: there are too many groups for one report.
            Overloaded: too many other reports, of this tenant or of all, are waiting.
        """
        owner = call_filter.owner
        if self._waiting.total() >= _MAX_WAITING or self._waiting[owner] >= _MAX_WAITING_PER_OWNER:
            raise Overloaded("too many usage reports are being computed; try again", retry_after=2)
        self._waiting[owner] += 1
        try:
            async with self._summing:
                sums = await self._database.read(
                    _build_sum_function(call_filter, groupings, price_classes)
                )
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]
        if sum(map(len, sums)) > _MAX_SUMS:
            raise InvalidRequest(
                f"group_by makes more than {_MAX_SUMS} groups; choose a shorter period, or add a filter",
                field="group_by",
            )
        return sums


def _build_sum_function(
    call_filter: CallFilter, groupings: Sequence[Sequence[GroupBy]], price_classes: PriceClasses
) -> Callable[[sa.Connection], list[list[UsageSum]]]:
    width = max(map(len, groupings))

    def sum_calls(connection: sa.Connection) -> list[list[UsageSum]]:
        finest_sums = _build_finest_sums(
            call_filter, dict.fromkeys(chain(*groupings)), price_classes, connection.dialect.name
        )
        group_queries = [
            _build_group_query(finest_sums, number, grouping, width)
            for number, grouping in enumerate(groupings)
        ]
        sums: list[list[UsageSum]] = [[] for _ in groupings]
        for number, *row in connection.execute(sa.union_all(*group_queries).limit(_MAX_SUMS + 1)):
            sums[number].append(_parse_sum(row, len(groupings[number]), width))
        return sums

    return sum_calls


def _build_finest_sums(
    call_filter: CallFilter, group_by: Iterable[GroupBy], price_classes: PriceClasses, dialect: str
) -> sa.CTE:
    """Return the sums of calls by all properties of ``group_by`` and by price classes."""
    properties = [
        *(_build_group(name, dialect).label(name.value) for name in group_by),
        _build_band(price_classes.prompt_bounds).label("band"),
        _build_is_embedding(price_classes).label("is_embedding"),
        usage.c.complete,
        usage.c.unit,
    ]
    sums = [sa.func.coalesce(sa.func.sum(usage.c[name]), 0).label(name) for name in _SUMMED]
    return (
        sa.select(*properties, sa.func.count().label("calls"), *sums)
        .where(*_build_conditions(call_filter))
        # By position, since PostgreSQL takes equal expressions with parameters for different ones.
        .group_by(*(sa.literal_column(str(n + 1)) for n in range(len(properties))))
        .cte("finest_sums")
    )


def _build_group_query(
    finest_sums: sa.CTE, number: int, grouping: Sequence[GroupBy], width: int
) -> sa.Select[Any]:
    """Return the query that sums ``finest_sums`` by the properties of one grouping.

    Args:
        number: the index of the grouping in the report; the query returns it as its first column.
        width: the number of columns for groups; those that ``grouping`` does not need are null.
    """
    columns = finest_sums.c
    group_columns = [columns[name.value] for name in grouping]
    class_columns = [columns[name] for name in ("band", "is_embedding", "complete", "unit")]
    return sa.select(
        sa.literal_column(str(number)),
        *group_columns,
        *[sa.null()] * (width - len(group_columns)),
        *class_columns,
        *(sa.func.sum(columns[name]) for name in ("calls", *_SUMMED)),
    ).group_by(*group_columns, *class_columns)


def _parse_sum(row: Sequence[Any], group_count: int, width: int) -> UsageSum:
    band, is_embedding, is_complete, unit, *sums = row[width:]
    (
        calls,
        input_tokens,
        cached_tokens,
        output_tokens,
        quantity,
        load_milliseconds,
        cost_nano_usd,
    ) = map(int, sums)
    return UsageSum(
        group=tuple(row[:group_count]),
        band=band,
        is_embedding=bool(is_embedding),
        is_complete=is_complete,
        unit=unit,
        calls=calls,
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        quantity=quantity,
        load_milliseconds=load_milliseconds,
        cost_usd=nano_to_usd(cost_nano_usd),
    )


def _build_conditions(call_filter: CallFilter) -> list[sa.ColumnElement[bool]]:
    values_by_column = {
        usage.c.owner: call_filter.owner,
        usage.c.key_id: call_filter.key_id,
        usage.c.backend: call_filter.backend,
        usage.c.model: call_filter.model,
        usage.c.requested_model: call_filter.requested_model,
    }
    conditions = [
        column == value for column, value in values_by_column.items() if value is not None
    ]
    if call_filter.since is not None:
        conditions.append(usage.c.created_at >= call_filter.since)
    if call_filter.until is not None:
        conditions.append(usage.c.created_at < call_filter.until)
    if call_filter.status is not None:
        conditions += _build_status_conditions(call_filter.status)
    return conditions


def _build_status_conditions(status: CallStatus) -> list[sa.ColumnElement[bool]]:
    if status is CallStatus.COMPLETE:
        return [usage.c.complete]
    conditions = {
        CallStatus.CANCELLED: usage.c.error == CANCELLED,
        CallStatus.FAILED: usage.c.error != CANCELLED,
        CallStatus.INCOMPLETE: usage.c.error.is_(None),
    }
    return [sa.not_(usage.c.complete), conditions[status]]


def _build_group(group: GroupBy, dialect: str) -> sa.ColumnElement[Any]:
    match group:
        case GroupBy.DAY if dialect == "sqlite":
            # SQLite stores times as text in UTC that begins with the day.
            return sa.func.substr(sa.type_coerce(usage.c.created_at, sa.String), 1, 10)
        case GroupBy.DAY:
            return sa.func.to_char(sa.func.timezone("UTC", usage.c.created_at), "YYYY-MM-DD")
        case GroupBy.KEY:
            return usage.c.key_id
        case GroupBy.USER:
            return sa.func.coalesce(
                _build_lookup(api_keys.c.user_id, api_keys.c.id == usage.c.key_id),
                _build_lookup(sessions.c.user_id, sessions.c.id == usage.c.key_id),
            )
        case GroupBy.TEMPLATE:
            is_job_of_call = sa.and_(jobs.c.id == usage.c.request_id, jobs.c.owner == usage.c.owner)
            template = _build_lookup(jobs.c.templates[0].as_string(), is_job_of_call)
            return sa.case((usage.c.operation == RENDER, template))
        case _:
            return usage.c[group.value]


def _build_lookup(
    column: sa.ColumnElement[Any], condition: sa.ColumnElement[bool]
) -> sa.ScalarSelect[Any]:
    """Return a subquery that reads ``column`` of another table for each call.

    Args:
        condition: joins the row of the other table with the call in the ledger.
    """
    return sa.select(column).where(condition).correlate(usage).scalar_subquery()


def _build_band(bounds: Sequence[int]) -> sa.ColumnElement[int]:
    if not bounds:
        return sa.literal_column("0")
    cases = [(usage.c.input_tokens <= bound, number) for number, bound in enumerate(bounds)]
    return sa.case(*cases, else_=len(bounds))


def _build_is_embedding(price_classes: PriceClasses) -> sa.ColumnElement[int]:
    if not price_classes.embeddings:
        return sa.literal_column("0")
    return sa.case((usage.c.model.in_(sorted(price_classes.embeddings)), 1), else_=0)
