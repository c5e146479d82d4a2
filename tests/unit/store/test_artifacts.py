"""Tests which indexes are used to find artifacts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from moyin.domain.artifact import Artifact
from moyin.domain.prompt import ComfyFileName
from moyin.errors import FileStorageFull
from moyin.store.artifacts import ArtifactFilter, ArtifactStore, generate_artifact_id
from moyin.store.comfy_file_names import UploadStore
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


def _make_artifact(size: int) -> Artifact:
    return Artifact(
        id=generate_artifact_id(), name="a.png", media_type="image/png", size=size, sha256="0" * 64
    )


async def test_the_uploads_of_a_tenant_are_bounded_together(database: Database) -> None:
    artifacts = ArtifactStore(database, max_upload_bytes=10)
    uploads = UploadStore(database, max_upload_bytes=10)
    name = ComfyFileName(type="input", subfolder="", filename="a.png")
    first = _make_artifact(4)
    await artifacts.add(first, owner="ann")
    await uploads.put("ann", name, _make_artifact(5), may_replace=True)
    with pytest.raises(FileStorageFull, match="9 bytes together, and at most 10") as exc_info:
        await artifacts.add(_make_artifact(2), owner="ann")
    assert exc_info.value.details == {"used_bytes": 9, "max_bytes": 10}
    with pytest.raises(FileStorageFull):
        await artifacts.add_or_restore(_make_artifact(2), owner="ann")
    with pytest.raises(FileStorageFull):
        await uploads.put("ann", name, _make_artifact(2), may_replace=True)
    with pytest.raises(FileStorageFull):
        await artifacts.require_room("ann", 2)
    await artifacts.require_room("ann", 1)
    # Neither outputs of jobs nor other tenants' uploads count, and deletion makes room.
    await artifacts.add(
        _make_artifact(100), owner="ann", job_id="00000000-0000-0000-0000-000000000000"
    )
    await artifacts.add(_make_artifact(10), owner="bob")
    await artifacts.delete("ann", first.id)
    await artifacts.add(_make_artifact(5), owner="ann")


async def test_sizes_of_uploads_are_summed_by_an_index(database: Database) -> None:
    query = (
        "EXPLAIN QUERY PLAN SELECT sum(size) FROM artifacts "
        "WHERE owner = 'ann' AND job_id IS NULL AND deleted_at IS NULL"
    )
    plan = await database.read(lambda connection: connection.exec_driver_sql(query).fetchall())
    assert "COVERING INDEX ix_artifacts_upload_sizes" in str(plan)
