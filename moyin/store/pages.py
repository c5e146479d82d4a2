"""Reads pages of tables that are sorted by time and id, with bounded work per page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa

from moyin.store.cursors import build_older_condition, encode_cursor
from moyin.store.sql import ensure_utc

# The maximum number of values compared for a page if no index finds the matching rows.
MAX_SCANNED = 2_000
_NUMBER, _IS_MATCH = "scanned_number", "is_match"
Condition: TypeAlias = sa.ColumnElement[bool]
_Position: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PageQuery:
    """Describes which rows of a table are listed.

    Attributes:
        ranges: lists of conditions. Each list selects rows that an index returns in the page's
            order. No two lists select the same row; the page merges the rows of all lists.
        scanned: given the table's columns, returns the conditions that are checked row by row,
            because no index covers them. After `MAX_SCANNED` compared values the page ends, even
            if few rows match.
        values_per_row: the number of values that ``scanned`` compares in each row, at least 1.
    """

    table: sa.Table
    ranges: Sequence[Sequence[Condition]]
    scanned: Callable[[Any], list[Condition]] | None = None
    values_per_row: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The ids of a page's rows, newest first, and the cursor of the next page, if any."""

    ids: Sequence[str]
    next_cursor: str | None


def fetch_page(
    connection: sa.Connection, query: PageQuery, *, limit: int, cursor: str | None
) -> Page:
    """Return a page of at most ``limit`` rows; rows that are added later do not shift the pages.

    Raises:
        InvalidRequest: ``cursor`` is not the cursor of a page.
    """
    older_conditions = [] if cursor is None else [build_older_condition(query.table, cursor)]
    if query.scanned is None:
        rows = _fetch_newest(connection, query, older_conditions, limit + 1)
        return _build_page(rows[:limit], rows[limit - 1] if len(rows) > limit else None)
    [index_conditions] = query.ranges
    columns = query.table.c
    max_rows = max(1, MAX_SCANNED // query.values_per_row)
    newest_rows = (
        sa.select(
            *columns,
            sa.func.row_number().over(order_by=_order_by_newest(columns)).label(_NUMBER),
        )
        .where(*index_conditions, *older_conditions)
        .order_by(*_order_by_newest(columns))
        .limit(max_rows)
        .subquery()
    )
    is_match = sa.case((sa.and_(sa.true(), *query.scanned(newest_rows.c)), 1), else_=0)
    scanned_rows = sa.select(
        newest_rows.c.created_at,
        newest_rows.c.id,
        newest_rows.c[_NUMBER],
        is_match.label(_IS_MATCH),
    ).subquery()
    # The last row that is scanned comes with the matching ones: in another statement, rows that are
    # deleted meanwhile would move it.
    page_rows = (
        sa.select(scanned_rows)
        .where(sa.or_(scanned_rows.c[_IS_MATCH] == 1, scanned_rows.c[_NUMBER] == max_rows))
        .order_by(*_order_by_newest(scanned_rows.c))
        .limit(limit + 2)
    )
    rows, last_position = list[_Position](), None
    for created_at, row_id, number, is_matching in connection.execute(page_rows):
        position = ensure_utc(created_at), row_id
        if is_matching:
            rows.append(position)
        if number == max_rows:
            last_position = position
    return _build_page(rows[:limit], rows[limit - 1] if len(rows) > limit else last_position)


def count_rows(connection: sa.Connection, query: PageQuery) -> int:
    """Return the number of rows in the index ranges of a query."""
    count_queries = [
        sa.select(sa.func.count()).select_from(query.table).where(*index_conditions)
        for index_conditions in query.ranges
    ]
    return sum(int(connection.execute(count_query).scalar_one()) for count_query in count_queries)


def _fetch_newest(
    connection: sa.Connection, query: PageQuery, older_conditions: Sequence[Condition], limit: int
) -> list[_Position]:
    """Return the newest ``limit`` rows of all ranges, reading at most ``limit`` rows of each.

    Args:
        older_conditions: the conditions for rows after the cursor; empty for the first page.
    """
    columns = query.table.c
    range_queries = [
        sa.select(columns.created_at, columns.id)
        .where(*index_conditions, *older_conditions)
        .order_by(*_order_by_newest(columns))
        .limit(limit)
        for index_conditions in query.ranges
    ]
    if len(range_queries) == 1:
        return _fetch_positions(connection, range_queries[0])
    all_rows = sa.union_all(
        *(range_query.subquery().select() for range_query in range_queries)
    ).subquery()
    ordered_rows = sa.select(all_rows.c.created_at, all_rows.c.id).order_by(
        *_order_by_newest(all_rows.c)
    )
    return _fetch_positions(connection, ordered_rows.limit(limit))


def _fetch_positions(connection: sa.Connection, query: sa.Select[Any]) -> list[_Position]:
    return [(ensure_utc(created_at), row_id) for created_at, row_id in connection.execute(query)]


def _build_page(rows: Sequence[_Position], last_position: _Position | None) -> Page:
    ids = [row_id for _, row_id in rows]
    return Page(
        ids=ids, next_cursor=None if last_position is None else encode_cursor(*last_position)
    )


def _order_by_newest(columns: Any) -> tuple[sa.UnaryExpression[Any], sa.UnaryExpression[Any]]:
    return columns.created_at.desc(), columns.id.desc()
