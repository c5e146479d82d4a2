"""Encodes a position in a list as a cursor of time and id, so that new rows shift no page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from moyin.errors import InvalidRequest
from moyin.store.sql import Database, ensure_utc


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRequest:
    """Describes a page of a list.

    Attributes:
        limit: the maximum number of rows of the page; None for all rows.
        cursor: the cursor that the previous page returned, or None for the first page.
    """

    limit: int | None = None
    cursor: str | None = None


async def fetch_page(
    database: Database, table: sa.Table, condition: sa.ColumnElement[bool], page: PageRequest
) -> tuple[Sequence[Mapping[Any, Any]], str | None]:
    """Return the rows of a page of ``table``, newest first, and the cursor of the next page.

    The cursor is None on the last page. Only rows that meet ``condition`` are on the pages.

    Raises:
        InvalidRequest: the cursor of ``page`` is not one that this function returned.
    """
    query = sa.select(table).where(condition)
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc())
    if page.cursor is not None:
        query = query.where(build_older_condition(table, page.cursor))
    if page.limit is None:
        return await database.fetch_all(query), None
    rows = await database.fetch_all(query.limit(page.limit + 1))
    if len(rows) <= page.limit:
        return rows, None
    last_row = rows[page.limit - 1]
    return rows[: page.limit], encode_cursor(ensure_utc(last_row["created_at"]), last_row["id"])


def build_search_condition(text: str, *columns: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return the SQL condition that one of ``columns`` contains ``text``, ignoring case."""
    return sa.or_(*(column.icontains(text, autoescape=True) for column in columns))


def encode_cursor(created_at: datetime, row_id: str) -> str:
    """Return the cursor of the page that begins after the row ``row_id``."""
    position = f"{created_at.isoformat()}_{row_id}"
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def build_older_condition(table: sa.Table, cursor: str) -> sa.ColumnElement[bool]:
    """Return the condition for rows of ``table`` that are older than the row of the cursor.

    Raises:
        InvalidRequest: the cursor is not one that `encode_cursor` returned.
    """
    created_at, row_id = _decode_cursor(cursor)
    return sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(
        sa.literal(created_at, table.c.created_at.type), sa.literal(row_id)
    )


def _decode_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        position = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_at, _, row_id = position.partition("_")
        if "\0" in row_id:
            raise ValueError("a cursor must not contain NUL, which PostgreSQL cannot compare")
        return datetime.fromisoformat(created_at).astimezone(UTC), row_id
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "cursor must be the value of next_cursor in the previous response", field="cursor"
        ) from None
