"""Add a table of deleted jobs, a column for jobs' templates, and indexes of jobs and artifacts.

PostgreSQL builds the indexes while jobs run, outside of a transaction. An interrupted migration can
be run again: existing tables, columns and indexes are kept.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_OLD_INDEXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ix_jobs_owner_status": ("jobs", ("owner", "status")),
}
_INDEXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ix_jobs_owner_status_kind": ("jobs", ("owner", "status", "kind", "created_at", "id")),
    "ix_artifacts_visible": ("artifacts", ("owner", "created_at", "id")),
    "ix_artifacts_deleted_at": ("artifacts", ("deleted_at",)),
    "ix_uploads_artifact_id": ("uploads", ("artifact_id",)),
}
_CONDITIONS = {
    "ix_artifacts_visible": "deleted_at IS NULL",
    "ix_artifacts_deleted_at": "deleted_at IS NOT NULL",
}


def upgrade() -> None:
    if_not_exists = _is_postgresql() or None
    op.add_column(
        "jobs", sa.Column("templates", sa.JSON, nullable=True), if_not_exists=if_not_exists
    )
    op.create_table(
        "deleted_jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("spec", sa.String(64), nullable=False),
        sa.Column("record", sa.String(64), nullable=True),
        sa.Column("results", sa.JSON, nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cleaned", sa.Boolean, nullable=False, server_default=sa.false()),
        if_not_exists=if_not_exists,
    )
    op.create_index(
        "ix_deleted_jobs_cleaned_deleted_at",
        "deleted_jobs",
        ["cleaned", "deleted_at"],
        if_not_exists=if_not_exists,
    )
    # Files that are deleted later free their names themselves.
    op.execute(
        "DELETE FROM uploads WHERE artifact_id IN "
        "(SELECT id FROM artifacts WHERE deleted_at IS NOT NULL)"
    )
    _replace_indexes(_OLD_INDEXES, _INDEXES)


def downgrade() -> None:
    _replace_indexes(_INDEXES, _OLD_INDEXES)
    op.drop_table("deleted_jobs", if_exists=_is_postgresql() or None)
    op.drop_column("jobs", "templates", if_exists=_is_postgresql() or None)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _replace_indexes(
    old: Mapping[str, tuple[str, tuple[str, ...]]], new: Mapping[str, tuple[str, tuple[str, ...]]]
) -> None:
    if not _is_postgresql():
        for name, (table, _) in old.items():
            op.drop_index(name, table)
        for name, (table, columns) in new.items():
            op.create_index(name, table, list(columns), **_build_options(name))
        return
    with op.get_context().autocommit_block():
        for name, (table, columns) in new.items():
            _drop_if_invalid(name, table)
            op.create_index(
                name,
                table,
                list(columns),
                if_not_exists=True,
                postgresql_concurrently=True,
                **_build_options(name),
            )
        for name, (table, _) in old.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


def _build_options(name: str) -> dict[str, Any]:
    if name not in _CONDITIONS:
        return {}
    condition = sa.text(_CONDITIONS[name])
    return {"sqlite_where": condition, "postgresql_where": condition}


def _drop_if_invalid(name: str, table: str) -> None:
    """Drop the unusable index that an interrupted construction has left, if there is one."""
    query = sa.text(
        "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
        "WHERE relname = :name AND NOT indisvalid AND pg_table_is_visible(pg_class.oid)"
    )
    if op.get_bind().execute(query, {"name": name}).first() is not None:
        op.drop_index(name, table, postgresql_concurrently=True)
