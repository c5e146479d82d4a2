"""Cuts the groups of a usage report into pages.

A cursor contains the position of the last group of a page. Groups only grow while calls are added, and
so move to earlier pages. Therefore no group is on two pages.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field

from moyin.errors import InvalidRequest
from moyin.store.usage_reports import GroupBy
from moyin.text.protocol.usage import GroupBody

_NANO = 10**9


class _GroupPosition(BaseModel):
    """The values by which groups are sorted: the day, the cost, the number of calls, the names."""

    day: str
    cost: int
    calls: int
    names: Annotated[list[str], Field(max_length=2)]

    @property
    def key(self) -> tuple[str, int, int, list[str]]:
        return self.day, -self.cost, -self.calls, self.names


def sort_groups(groups: Sequence[GroupBody], group_by: Sequence[GroupBy]) -> list[GroupBody]:
    """Return the groups sorted by day, and the groups of a day by cost, the highest first."""
    return sorted(groups, key=lambda group: _find_position(group, group_by).key)


def cut_page(
    groups: Sequence[GroupBody], group_by: Sequence[GroupBy], limit: int, cursor: str | None
) -> tuple[list[GroupBody], str | None]:
    """Return a page of sorted groups and the cursor of the next page; on the last page it is None.

    Raises:
        InvalidRequest: ``cursor`` is not one that this function returned.
    """
    if cursor is not None:
        last_key = _decode_cursor(cursor).key
        groups = [group for group in groups if _find_position(group, group_by).key > last_key]
    page = list(groups[:limit])
    if len(groups) <= limit:
        return page, None
    return page, _encode_cursor(_find_position(page[-1], group_by))


def _find_position(group: GroupBody, group_by: Sequence[GroupBy]) -> _GroupPosition:
    return _GroupPosition(
        day=group.day or "",
        cost=int(Decimal(group.cost_usd) * _NANO),
        calls=group.calls,
        # A group without a name stands before one with an empty name.
        names=[
            "" if (value := getattr(group, name.value)) is None else f"_{value}"
            for name in group_by
        ],
    )


def _encode_cursor(position: _GroupPosition) -> str:
    return base64.urlsafe_b64encode(position.model_dump_json().encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> _GroupPosition:
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return _GroupPosition.model_validate_json(content, strict=True)
    except ValueError:
        raise InvalidRequest(
            "cursor: must be the next_cursor of the previous page", field="cursor"
        ) from None
