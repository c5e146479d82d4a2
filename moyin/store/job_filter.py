"""Defines `JobFilter`, which selects jobs to list, cancel or delete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from moyin.domain.job import JobStatus, StepKind
from moyin.store.job_words import build_word_condition, find_job_ids, find_words
from moyin.store.pages import MAX_SCANNED, Condition, Page, PageQuery, fetch_page
from moyin.store.schema import jobs

_KINDS = (*(kind.value for kind in StepKind), "pipeline")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFilter:
    """Selects an owner's jobs that meet all conditions; None or empty means no condition.

    Attributes:
        statuses: the statuses that match.
        pool: the render pool of one of the job's steps.
        template: the template of one of the job's steps.
        metadata: keys and values that the job's metadata must contain.
        created_after: the earliest time of the submission.
        created_before: the time before which the job was submitted.
        search: words that the job's request or metadata must contain.
    """

    statuses: tuple[JobStatus, ...] = ()
    kind: str | None = None
    pool: str | None = None
    template: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None

    @property
    def is_empty(self) -> bool:
        return self == JobFilter()

    @property
    def is_indexed(self) -> bool:
        """True if indexes find exactly the matching jobs, so that no other rows are read."""
        return (
            self.pool is None
            and self.template is None
            and not self.metadata
            and self.search is None
        )

    def fetch_page(
        self, connection: sa.Connection, owner: str, *, limit: int, cursor: str | None
    ) -> Page:
        """Return a page of the owner's jobs, as `moyin.store.pages.fetch_page` does.

        A search first checks the newest jobs, which suffices for frequent words. If these do not
        fill the page, the word index finds all matching jobs. If those are too many to sort by
        time, the page stays incomplete, and the search continues with the next page.
        """
        dialect = connection.dialect.name
        page = fetch_page(connection, self.build_query(owner, dialect), limit=limit, cursor=cursor)
        if self.search is None or page.next_cursor is None or len(page.ids) == limit:
            return page
        ids = find_job_ids(connection, owner, self.search, MAX_SCANNED + 1)
        if len(ids) > MAX_SCANNED:
            return page
        conditions = [
            _build_id_condition(ids, dialect),
            # Not the plain column: SQLite would then read the index of all the owner's jobs.
            jobs.c.owner.concat("") == owner,
            *self._build_time_conditions(),
            *self.build_row_conditions(jobs.c, dialect),
        ]
        query = PageQuery(table=jobs, ranges=[conditions])
        return fetch_page(connection, query, limit=limit, cursor=cursor)

    def build_query(self, owner: str, dialect: str) -> PageQuery:
        """Return the query for those jobs of the owner that match the filter.

        Indexes cover the conditions on times, status and kind. All other conditions are checked
        row by row. Each word of a search counts as one more compared value in
        `PageQuery.values_per_row`, because it must be compared with the whole text of a job.
        """
        common_conditions = [jobs.c.owner == owner, *self._build_time_conditions()]
        if self.is_indexed:
            return PageQuery(table=jobs, ranges=self._build_ranges(common_conditions))
        return PageQuery(
            table=jobs,
            ranges=[common_conditions],
            scanned=lambda columns: self._build_scanned_conditions(columns, owner, dialect),
            values_per_row=1 if self.search is None else 1 + len(find_words(self.search)),
        )

    def _build_time_conditions(self) -> list[Condition]:
        conditions: list[Condition] = []
        if self.created_after is not None:
            conditions.append(jobs.c.created_at >= self.created_after)
        if self.created_before is not None:
            conditions.append(jobs.c.created_at < self.created_before)
        return conditions

    def _build_ranges(self, common_conditions: list[Condition]) -> list[list[Condition]]:
        """Return the conditions of one index range for each requested pair of status and kind.

        Args:
            common_conditions: the conditions with which every range begins.
        """
        if not self.statuses and self.kind is None:
            return [common_conditions]
        return [
            [*common_conditions, jobs.c.status == status.value, jobs.c.kind == kind]
            for status in dict.fromkeys(self.statuses or JobStatus)
            for kind in (_KINDS if self.kind is None else (self.kind,))
        ]

    def _build_scanned_conditions(self, columns: Any, owner: str, dialect: str) -> list[Condition]:
        conditions = self.build_row_conditions(columns, dialect)
        if self.search is not None:
            conditions.append(build_word_condition(columns.id, owner, self.search, dialect))
        return conditions

    def build_row_conditions(self, columns: Any, dialect: str) -> list[Condition]:
        """Return the conditions on columns of a job's row, except those on times and words."""
        conditions: list[Condition] = []
        if self.statuses:
            conditions.append(columns.status.in_([status.value for status in self.statuses]))
        if self.kind is not None:
            conditions.append(columns.kind == self.kind)
        if self.pool is not None:
            # Names of pools and templates have no characters that JSON escapes.
            render_head = f'["{StepKind.RENDER.value}","{self.pool}"]'
            conditions.append(
                sa.cast(columns.heads, sa.Text).contains(render_head, autoescape=True)
            )
        if self.template is not None:
            quoted_template = f'"{self.template}"'
            conditions.append(
                sa.cast(columns.templates, sa.Text).contains(quoted_template, autoescape=True)
            )
        for key, value in self.metadata.items():
            conditions.append(_build_metadata_condition(columns.metadata, key, value, dialect))
        return conditions


def _build_id_condition(ids: Sequence[str], dialect: str) -> Condition:
    """Return the condition that a job has one of the ids, which are sent as one value.

    A parameter for each of 2,000 ids takes longer to prepare than the whole page.
    """
    if dialect != "sqlite":
        return jobs.c.id == sa.any_(sa.literal(list(ids), ARRAY(sa.Text)))
    members = sa.func.json_each(json.dumps(list(ids))).table_valued("value")
    return jobs.c.id.in_(sa.select(members.c.value))


def _build_metadata_condition(column: Any, key: str, value: str, dialect: str) -> Condition:
    if dialect != "sqlite":
        matches: Condition = column[key].as_string() == value
        return matches
    # Paths of SQLite's `json_extract` cannot name labels with quotes or backslashes.
    members = sa.func.json_each(column).table_valued("key", "value")
    return sa.exists().select_from(members).where(members.c.key == key, members.c.value == value)
