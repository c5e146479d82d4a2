"""Tests which indexes are used to find artifacts."""

from __future__ import annotations

from functools import partial
from typing import Any

import sqlalchemy as sa

from moyin.store.artifacts import ArtifactFilter
from moyin.store.pages import fetch_page
from moyin.store.sql import Database


async def test_an_index_finds_favourites_among_many_files(database: Database) -> None:
    """Without the index, each page would read all files to find a few favourites."""

    def explain_query(connection: sa.Connection, artifact_filter: ArtifactFilter) -> str:
        recorded_statements: list[Any] = []

        def record_statement(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
            recorded_statements.append((statement, parameters))

        sa.event.listen(connection, "before_cursor_execute", record_statement)
        fetch_page(connection, artifact_filter.build_query("ann", "sqlite"), limit=9, cursor=None)
        sa.event.remove(connection, "before_cursor_execute", record_statement)
        statement, parameters = next(
            recorded_statement
            for recorded_statement in recorded_statements
            if "FROM artifacts" in recorded_statement[0]
        )
        plan_rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(plan_row.detail for plan_row in plan_rows)

    for artifact_filter in (
        ArtifactFilter(favourite=True),
        ArtifactFilter(favourite=True, media_type="image/*"),
    ):
        query_plan = await database.read(partial(explain_query, artifact_filter=artifact_filter))
        assert "USING INDEX ix_artifacts_favourites (owner=? AND favourite=?)" in query_plan, (
            query_plan
        )
    plan_without_filter = await database.read(
        partial(explain_query, artifact_filter=ArtifactFilter())
    )
    assert "USING INDEX ix_artifacts_visible (owner=?)" in plan_without_filter
