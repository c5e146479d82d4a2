"""Encodes positions in lists that are sorted by time and id, so that pages are stable."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import sqlalchemy as sa

from moyin.errors import InvalidRequest


def encode_cursor(created_at: datetime, row_id: str) -> str:
    """Return the cursor of the page that follows a row."""
    plain = f"{created_at.isoformat()}_{row_id}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def build_older_condition(table: sa.Table, cursor: str) -> sa.ColumnElement[bool]:
    """Return the condition for rows of ``table`` that are older than the row of the cursor.

    Raises:
        InvalidRequest: no page returned this cursor.
    """
    created_at, row_id = _decode_cursor(cursor)
    return sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(
        sa.literal(created_at, table.c.created_at.type), sa.literal(row_id)
    )


def _decode_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        plain = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_at, _, row_id = plain.partition("_")
        if "\0" in row_id:
            raise ValueError("PostgreSQL cannot store NUL characters")
        return datetime.fromisoformat(created_at).astimezone(UTC), row_id
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "cursor must be the next_cursor of the previous page", field="cursor"
        ) from None
